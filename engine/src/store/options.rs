//! RocksDB's options: small memory, checked bytes, no log of its own.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, LogLevel, Options};

const MIB: usize = 1 << 20;

/// So many removed pages among so many neighbours have a file merged.
const REMOVED_TRIGGER: usize = 64;
const REMOVED_WINDOW: usize = 128;

/// What can be chosen about a store; the default suits a server with a shared page cache above it.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Size of one write buffer; the pages' family has at most three.
    pub write_buffer_bytes: usize,
    /// Size of the cache of uncompressed blocks.
    pub block_cache_bytes: usize,
    /// Whether RocksDB merges files by itself. Without it reads get slower with every flush, and nothing else.
    pub automatic_compaction: bool,
    /// Threads that flush and compact.
    pub background_jobs: i32,
    /// Table files open at one time; must leave the process room for its own.
    pub open_files: i32,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            write_buffer_bytes: 64 * MIB,
            block_cache_bytes: 64 * MIB,
            automatic_compaction: true,
            background_jobs: 2,
            open_files: 512,
        }
    }
}

impl StoreOptions {
    pub(super) fn block_cache(&self) -> Cache {
        Cache::new_lru_cache(self.block_cache_bytes)
    }

    pub(super) fn database(&self) -> Options {
        let mut options = Options::default();
        options.set_atomic_flush(true);
        options.set_paranoid_checks(true);
        options.set_allow_mmap_reads(false);
        options.set_allow_mmap_writes(false);
        options.set_max_background_jobs(self.background_jobs);
        options.set_max_open_files(self.open_files);
        options.set_db_write_buffer_size(3 * self.write_buffer_bytes);
        // Written pages reach the disk evenly, so that a flush does not end in one long sync.
        options.set_bytes_per_sync(MIB as u64);
        options.set_max_manifest_file_size(16 * MIB);
        options.set_manifest_preallocation_size(64 << 10);
        options.set_max_log_file_size(4 * MIB);
        options.set_keep_log_file_num(2);
        options.set_log_level(LogLevel::Info);
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options
    }

    /// Pages: large values, read by exact key, overwritten as a whole.
    pub(super) fn pages_family(&self, block_cache: &Cache) -> Options {
        let mut table = checked_table(block_cache);
        // About one full page per block: a point read decompresses little more than its page.
        table.set_block_size(32 << 10);
        table.set_ribbon_filter(10.0);
        table.set_optimize_filters_for_memory(true);
        let mut options = Options::default();
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size(self.write_buffer_bytes);
        options.set_max_write_buffer_number(3);
        options.set_target_file_size_base(64 * MIB as u64);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_bottommost_compression_type(DBCompressionType::Zstd);
        // Window bits and strategy are zstd's own; level 3, no dictionary.
        options.set_bottommost_compression_options(-14, 3, 0, 0, true);
        // Blocks that became cold are removed side by side. A file with many of them is merged soon, down to where the pages are, so
        // that their room is given back without waiting for other files.
        options.add_compact_on_deletion_collector_factory(REMOVED_WINDOW, REMOVED_TRIGGER, 0.0);
        self.choose_compaction(&mut options);
        options
    }

    /// Stubs of cold blocks: small values, asked for by exact key, often in vain.
    pub(super) fn cold_family(&self, block_cache: &Cache) -> Options {
        let mut table = checked_table(block_cache);
        table.set_ribbon_filter(10.0);
        let mut options = Options::default();
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size(4 * MIB);
        options.set_compression_type(DBCompressionType::Lz4);
        self.choose_compaction(&mut options);
        options
    }

    /// RocksDB demands a family of this name. It holds nothing; but after a full disk RocksDB waits for free space as large as the
    /// largest write buffer of any family, and usually that is the default one's.
    pub(super) fn default_family(&self) -> Options {
        let mut options = Options::default();
        options.set_write_buffer_size(64 << 10);
        options
    }

    /// Meta data: a mark and a few bytes per storage.
    pub(super) fn meta_family(&self, block_cache: &Cache) -> Options {
        let mut options = Options::default();
        options.set_block_based_table_factory(&checked_table(block_cache));
        options.set_write_buffer_size(4 * MIB);
        options.set_compression_type(DBCompressionType::Lz4);
        self.choose_compaction(&mut options);
        options
    }

    fn choose_compaction(&self, options: &mut Options) {
        if !self.automatic_compaction {
            options.set_disable_auto_compactions(true);
            // Files that nobody merges must not hold up writes.
            options.set_level_zero_slowdown_writes_trigger(i32::MAX);
            options.set_level_zero_stop_writes_trigger(i32::MAX);
        }
    }
}

fn checked_table(block_cache: &Cache) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(block_cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(6);
    table
}
