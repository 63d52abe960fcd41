//! What the engine's tests share: a log, a cluster that changes pages as backends do, and a plain model of what the log says.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod cold;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{Cache, CacheConfig, RelationFile, SharedMemory, StorageDescriptor, StorageInfo, Wait};
use kalamdb_engine::engine::{Engine, EngineConfig};
use kalamdb_engine::ids::{Lsn, PageKey, PageNumber, StorageId, Tid};
use kalamdb_engine::log::{Record, RecordBuilder, StorageCreate, apply_group};
use kalamdb_engine::page::{
    CHAIN_FANOUT, ChainEntry, Header, OVERFLOW_PAYLOAD, PAGE_SIZE, Page, PageKind, PageMut, PartitionEntry, build_version,
};
use kalamdb_engine::store::StoreOptions;
use kalamdb_engine::{Error, ErrorKind, Result};

/// The first position of the tests' log.
pub const LOG_START: u64 = 1000;
pub const SYSTEM_IDENTIFIER: u64 = 7_100_200_300_400_500_600;

/// Numbers that look random and repeat with the seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// A log that several processes append to: length, payload, again and again. A record's end is its place in the file.
pub struct Log {
    file: File,
    /// What is inserted and not flushed; none when every insertion goes to the file at once.
    pending: Option<Mutex<Vec<u8>>>,
}

impl Log {
    fn open(path: &Path, pending: Option<Mutex<Vec<u8>>>) -> Log {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        Log { file, pending }
    }

    /// A log whose insertions are lost with the process until they are flushed.
    pub fn buffered(path: &Path) -> Log {
        Log::open(path, Some(Mutex::new(Vec::new())))
    }

    /// A log that several processes write.
    pub fn shared(path: &Path) -> Log {
        Log::open(path, None)
    }

    fn written(&self) -> u64 {
        LOG_START + self.file.metadata().unwrap().len()
    }

    /// Where the next record begins.
    pub fn position(&self) -> Lsn {
        match &self.pending {
            Some(pending) => {
                let pending = pending.lock().unwrap();
                Lsn(self.written() + pending.len() as u64)
            }
            None => Lsn(self.written()),
        }
    }

    /// Appends a record; returns its end.
    pub fn insert(&self, payload: &[u8]) -> Lsn {
        let mut bytes = (payload.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(payload);
        if let Some(pending) = &self.pending {
            let mut pending = pending.lock().unwrap();
            pending.extend_from_slice(&bytes);
            return Lsn(self.written() + pending.len() as u64);
        }
        self.file.lock().unwrap();
        let end = self.written() - LOG_START;
        self.file.write_all_at(&bytes, end).unwrap();
        self.file.unlock().unwrap();
        Lsn(LOG_START + end + bytes.len() as u64)
    }

    /// Makes everything inserted so far outlive the process; returns up to where.
    pub fn flush(&self) -> Lsn {
        if let Some(pending) = &self.pending {
            let mut pending = pending.lock().unwrap();
            self.file.write_all_at(&pending, self.written() - LOG_START).unwrap();
            pending.clear();
        }
        Lsn(self.written())
    }

    /// The records with their ends, those that end after `from`; cuts off a torn one at the end.
    pub fn records(&self, from: Lsn) -> Vec<(Lsn, Vec<u8>)> {
        let mut bytes = vec![0; self.file.metadata().unwrap().len() as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        let mut records = Vec::new();
        let mut at = 0;
        while let Some(length) = bytes[at..].first_chunk::<4>() {
            let Some(payload) = bytes[at + 4..].get(..u32::from_le_bytes(*length) as usize) else { break };
            at += 4 + payload.len();
            if LOG_START + at as u64 > from.0 {
                records.push((Lsn(LOG_START + at as u64), payload.to_vec()));
            }
        }
        if self.pending.is_some() && at < bytes.len() {
            self.file.set_len(at as u64).unwrap();
        }
        records
    }

    /// Forgets what was not flushed, as a crash does.
    pub fn crash(&self) {
        self.pending.as_ref().expect("a shared log loses nothing").lock().unwrap().clear();
    }
}

/// Waits as a backend does, and serves the engine's wish for a flushed log as the worker's main thread does.
pub struct MainThread<'a> {
    pub engine: Option<&'a Engine>,
    pub log: &'a Log,
}

impl Wait for MainThread<'_> {
    fn pause(&self) -> Result<()> {
        if let Some(engine) = self.engine {
            if let Some(failure) = engine.failure() {
                return Err(Error::new(ErrorKind::Unavailable, failure));
            }
            serve(engine, self.log);
        }
        Ok(())
    }
}

/// One round of the worker's main loop.
pub fn serve(engine: &Engine, log: &Log) {
    engine.set_insert_position(log.position());
    if engine.wanted_flush().is_some() {
        engine.set_flushed(log.flush());
    }
}

/// A thread that plays the worker's main loop until it is dropped.
pub struct Serving {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Serving {
    pub fn start(engine: &Arc<Engine>, log: &Arc<Log>) -> Serving {
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, engine, log) = (Arc::clone(&stop), Arc::clone(engine), Arc::clone(log));
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                serve(&engine, &log);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        Serving { stop, thread: Some(thread) }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Starts this test binary again as the process `role`, which finds everything in `directory`.
pub fn start_process(role: &str, directory: &Path, seed: u64, stop: Option<(&str, u64)>) -> Process {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "process", "--nocapture", "--test-threads=1"]);
    command.env("KALAM_ROLE", role).env("KALAM_DIRECTORY", directory).env("KALAM_SEED", seed.to_string());
    command.stdout(std::process::Stdio::null()).stderr(File::create(directory.join(format!("{role}.log"))).unwrap());
    if let Some((name, count)) = stop {
        command.env("KALAM_STOP", format!("{count}:{name}"));
    }
    Process(command.spawn().unwrap())
}

/// A started process; it does not outlive the test.
pub struct Process(std::process::Child);

impl Process {
    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Waits for its end; none when it takes longer than `within`.
    pub fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        while begun.elapsed() < within {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    }

    /// Kills it.
    pub fn kill(&mut self) -> ExitStatus {
        // It may have ended by itself just now.
        let _ = self.0.kill();
        self.0.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a started process is to do; none in the test that starts processes.
pub struct Assignment {
    pub role: String,
    pub directory: std::path::PathBuf,
    pub seed: u64,
}

impl Assignment {
    pub fn get() -> Option<Assignment> {
        let role = std::env::var("KALAM_ROLE").ok()?;
        let seed = std::env::var("KALAM_SEED").unwrap().parse().unwrap();
        Some(Assignment { role, directory: std::env::var("KALAM_DIRECTORY").unwrap().into(), seed })
    }
}

static STOP_COUNT: AtomicU64 = AtomicU64::new(0);

/// Whether the stop point `name` is the one at which this process is to end, reached for the last time.
pub fn is_end(name: &str) -> bool {
    static STOP: OnceLock<Option<(u64, String)>> = OnceLock::new();
    let stop = STOP.get_or_init(|| {
        let stop = std::env::var("KALAM_STOP").ok()?;
        let (count, name) = stop.split_once(':').unwrap();
        Some((count.parse().unwrap(), name.to_owned()))
    });
    match stop {
        Some((count, wanted)) if wanted == name => STOP_COUNT.fetch_add(1, Ordering::SeqCst) + 1 == *count,
        _ => false,
    }
}

/// Gives up after a time in which nothing that works can take.
pub struct Patience(Instant);

impl Patience {
    pub fn new() -> Patience {
        Patience(Instant::now())
    }
}

impl Wait for Patience {
    fn pause(&self) -> Result<()> {
        if self.0.elapsed() > Duration::from_secs(120) {
            return Err(Error::new(ErrorKind::Cancelled, "waited two minutes"));
        }
        Ok(())
    }
}

/// Waits as the worker's main thread does while the engine is busy for it: the log is flushed as far as the engine wants it.
pub struct Flushing<'a> {
    pub cache: Cache,
    pub log: &'a Log,
    pub patience: Patience,
}

impl Wait for Flushing<'_> {
    fn pause(&self) -> Result<()> {
        self.cache.header().flushed_lsn.fetch_max(self.log.flush().0, Ordering::SeqCst);
        self.patience.pause()
    }
}

/// The memory of a cache; dropped after it.
pub struct Memory {
    memory: SharedMemory,
    pub cache: Cache,
}

impl Memory {
    fn file(path: &Path) -> File {
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    pub fn create(path: &Path, frames: u32) -> Memory {
        Memory::of_config(path, &CacheConfig { pages: frames, frames_per_page: 1, storages: 64 })
    }

    /// A cache that has memory for a quarter of its frames if all are full.
    pub fn sparse(path: &Path, frames: u32) -> Memory {
        Memory::of_config(path, &CacheConfig { pages: frames / 4, frames_per_page: 4, storages: 64 })
    }

    fn of_config(path: &Path, config: &CacheConfig) -> Memory {
        let file = Memory::file(path);
        let bytes = Cache::required_bytes(config);
        file.set_len(0).unwrap();
        file.set_len(bytes as u64).unwrap();
        let memory = SharedMemory::map(&file, bytes).unwrap();
        let cache = memory.create_cache(config).unwrap();
        Memory { memory, cache }
    }

    pub fn attach(path: &Path) -> Memory {
        let file = Memory::file(path);
        let memory = SharedMemory::map(&file, file.metadata().unwrap().len() as usize).unwrap();
        let cache = memory.attach_cache().unwrap();
        Memory { memory, cache }
    }
}

/// A directory in memory where there is one: processes die in these tests, machines do not, so syncing only costs time.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub fn config(directory: &Path, log: &Log) -> EngineConfig {
    let mut config = EngineConfig::new(directory.to_owned(), SYSTEM_IDENTIFIER, 1, log.position());
    config.store = StoreOptions { write_buffer_bytes: 1 << 20, block_cache_bytes: 1 << 20, ..StoreOptions::default() };
    config.checkpoint_log_bytes = 64 << 10;
    config.flush_patience = Duration::from_millis(20);
    config
}

/// Opens the engine and replays what the log has.
pub fn recover(cache: Cache, config: EngineConfig, log: &Log) -> Result<Engine> {
    let mut engine = Engine::open(cache, config)?;
    let mut end = engine.replay_from();
    for (record_end, payload) in log.records(end) {
        engine.replay(record_end, &payload, &Flushing { cache, log, patience: Patience::new() })?;
        end = record_end;
    }
    engine.finish_replay(end)?;
    Ok(engine)
}

pub fn relation(number: u64) -> RelationFile {
    RelationFile { tablespace: 1663, database: 5, relnumber: 20_000 + number as u32, owner: 0 }
}

/// Makes a storage for a relation's files, as a backend does; returns its id.
pub fn create_storage(cache: &Cache, log: &Log, file: RelationFile) -> StorageId {
    let id = cache.header().allocate_storage_id();
    let storage = StorageInfo::empty(id, file, false, 700);
    cache.storages().create(&storage).unwrap();
    let RelationFile { tablespace, database, relnumber, owner } = file;
    let mut record = RecordBuilder::new();
    record.create_storage(&StorageCreate { storage: id, tablespace, database, relnumber, owner, unlogged: false, xid: 700 });
    log.insert(record.bytes());
    id
}

/// The tuple's bytes from the hoff byte on: one bytea that does not compress.
fn row_body(random: &mut Random) -> Vec<u8> {
    let words = 1 + random.below(370);
    let mut body = vec![24, 0];
    body.extend_from_slice(&(((4 + 8 * words) << 2) as u32).to_le_bytes());
    (0..words).for_each(|_| body.extend_from_slice(&random.below(1 << 50).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()));
    body
}

/// Describes adding a row to a page, which starts anew when it is unused or full.
fn describe_insertion(page: Page<'_>, key: PageKey, random: &mut Random, record: &mut RecordBuilder) {
    let body = row_body(random);
    let mut offset = page.max_offset() + 1;
    if page.kind() != PageKind::Data || !page.has_room(38 + body.len()) {
        record.init(PageKind::Data, 0);
        offset = 1;
    }
    // The row's own place is its forward place.
    let ctid = Tid::new(key.page.as_block().expect("rows stand in blocks"), offset);
    let xmin = (1 << 33) + random.below(1 << 20);
    let header = Header { xmin, ctid, infomask2: 1, infomask: 0x0802, ..Header::default() };
    let mut version = Vec::new();
    build_version(&header, &body, &mut version);
    record.insert(offset, &version);
}

fn describe_header_change(page: Page<'_>, random: &mut Random, record: &mut RecordBuilder) {
    let offset = 1 + random.below(u64::from(page.max_offset())) as u16;
    let header = page.version(offset).unwrap().header();
    // Half of the rows are deleted, half of them are whole again: their block may become cold.
    let xmax = random.below(2) * (1 + random.below(1 << 40));
    let infomask = if xmax == 0 { header.infomask | 0x0800 } else { header.infomask & !0x0800 };
    record.header(offset, &Header { xmax, cmax: 3, infomask, ..header });
}

fn describe_overflow(page: Page<'_>, random: &mut Random, record: &mut RecordBuilder) {
    if page.kind() == PageKind::Overflow && random.below(3) == 0 {
        record.free();
    } else {
        let payload = vec![random.below(250) as u8; random.below(20_000) as usize];
        record.overflow(0, 1, payload.len() as u32, &payload);
    }
}

/// Describes the change of one page; a cold one becomes hot by that, so its image goes before.
fn describe(page: Page<'_>, key: PageKey, record: &mut RecordBuilder, change: impl FnOnce(&mut RecordBuilder)) {
    record.page(key);
    let start = record.len();
    change(record);
    if page.is_cold() {
        let mut image = Vec::new();
        page.to_compact(&mut image);
        record.image_before(start, &image);
    }
}

/// Gives a user the storage's next block, whose page stays unwritten: only the maps know that it is taken.
fn give_block(
    cache: &Cache,
    log: &Log,
    id: StorageId,
    descriptor: &StorageDescriptor,
    random: &mut Random,
    wait: &dyn Wait,
) -> Result<Lsn> {
    let block = descriptor.blocks.fetch_add(1, Ordering::SeqCst);
    let keys = [PageNumber::partitions(0), PageNumber::chains(block / CHAIN_FANOUT)].map(|page| PageKey { storage: id, page });
    let pins = [cache.read(keys[0], wait)?, cache.read(keys[1], wait)?];
    let mut guards = [pins[0].exclusive(wait)?, pins[1].exclusive(wait)?];
    let partition = 1 + random.below(5) as u32;
    let old = guards[0].page().partition_entry(partition);
    let mut record = RecordBuilder::new();
    record.page(keys[0]);
    if guards[0].page().kind() != PageKind::Partitions {
        record.init(PageKind::Partitions, 0);
    }
    record.partition(partition, PartitionEntry { last: block + 1, blocks: old.blocks + 1 });
    record.page(keys[1]);
    if guards[1].page().kind() != PageKind::Chains {
        record.init(PageKind::Chains, 0);
    }
    record.chain(block % CHAIN_FANOUT, ChainEntry { partition, before: old.last });
    Ok(apply(log, &mut guards, &record))
}

/// Does a record to latched pages, in the order every change of a page has.
fn apply(log: &Log, guards: &mut [kalamdb_engine::cache::ExclusiveGuard<'_>], record: &RecordBuilder) -> Lsn {
    let position = log.position();
    guards.iter().for_each(|guard| guard.mark_dirty(position));
    let end = log.insert(record.bytes());
    let decoded = Record::decode(record.bytes()).unwrap();
    for (guard, group) in guards.iter_mut().zip(decoded.groups()) {
        assert_eq!(guard.key(), group.key);
        apply_group(&group, end, &mut guard.page_mut()).unwrap();
    }
    end
}

/// Makes a new block with rows that nobody has deleted or locked.
pub fn insert_block(cache: &Cache, log: &Log, key: PageKey, rows: u64, wait: &dyn Wait) -> Result<Lsn> {
    let place = cache.storages().find_id(key.storage).ok_or_else(|| Error::internal("no storage"))?;
    cache.storages().at(place).note_block(key.page.as_block().expect("a page of rows"));
    let mut random = Random::new(key.page.0 + 1);
    let mut end = Lsn(0);
    for _ in 0..rows {
        let pin = cache.create_page(key, wait)?;
        let guard = pin.exclusive(wait)?;
        let mut record = RecordBuilder::new();
        describe(guard.page(), key, &mut record, |record| describe_insertion(guard.page(), key, &mut random, record));
        end = apply(log, &mut [guard], &record);
    }
    Ok(end)
}

/// Stores a value in overflow pages and a row that names it in a new block.
pub fn insert_value(cache: &Cache, log: &Log, key: PageKey, value: u32, bytes: &[u8], wait: &dyn Wait) -> Result<Lsn> {
    let place = cache.storages().find_id(key.storage).ok_or_else(|| Error::internal("no storage"))?;
    let descriptor = cache.storages().at(place);
    descriptor.next_value.fetch_max(value + 1, Ordering::SeqCst);
    for (chunk, payload) in bytes.chunks(OVERFLOW_PAYLOAD).enumerate() {
        let chunk_key = PageKey { page: PageNumber::overflow(value, chunk as u32), ..key };
        let pin = cache.create_page(chunk_key, wait)?;
        let guard = pin.exclusive(wait)?;
        let mut record = RecordBuilder::new();
        let references = u32::from(chunk == 0);
        describe(guard.page(), chunk_key, &mut record, |record| {
            record.overflow(0, references, bytes.len() as u32, payload);
        });
        apply(log, &mut [guard], &record);
    }
    insert_pointer(cache, log, key, value, bytes.len(), wait)
}

/// Adds a row that names a value of a length; whoever counts the rows is told separately.
pub fn insert_pointer(cache: &Cache, log: &Log, key: PageKey, value: u32, length: usize, wait: &dyn Wait) -> Result<Lsn> {
    let place = cache.storages().find_id(key.storage).ok_or_else(|| Error::internal("no storage"))?;
    let descriptor = cache.storages().at(place);
    // Postgres' TOAST pointer: two bytes of tag, raw size, stored size, value and table.
    let mut body = vec![24, 0, 1, 18];
    for word in [length as u32 + 4, length as u32, value, 16_400] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    descriptor.note_block(key.page.as_block().expect("a page of rows"));
    let pin = cache.create_page(key, wait)?;
    let guard = pin.exclusive(wait)?;
    let offset = guard.page().max_offset() + 1;
    let ctid = Tid::new(key.page.as_block().unwrap_or(0), offset);
    let header = Header { xmin: 1 << 33, ctid, infomask2: 1, infomask: 0x0806, ..Header::default() };
    let mut version = Vec::new();
    build_version(&header, &body, &mut version);
    let mut record = RecordBuilder::new();
    describe(guard.page(), key, &mut record, |record| {
        if offset == 1 {
            record.init(PageKind::Data, 0);
        }
        record.insert(offset, &version);
    });
    Ok(apply(log, &mut [guard], &record))
}

/// Makes chunks of a cold value hot.
pub fn thaw_value(
    cache: &Cache,
    log: &Log,
    id: StorageId,
    value: u32,
    chunks: std::ops::Range<u32>,
    wait: &dyn Wait,
) -> Result<()> {
    for chunk in chunks {
        let key = PageKey { storage: id, page: PageNumber::overflow(value, chunk) };
        let pin = cache.read(key, wait)?;
        let guard = pin.exclusive(wait)?;
        assert!(guard.page().is_cold());
        let references = guard.page().overflow_refcount();
        let mut record = RecordBuilder::new();
        describe(guard.page(), key, &mut record, |record| {
            record.refcount(references);
        });
        apply(log, &mut [guard], &record);
    }
    Ok(())
}

/// Changes how many rows name a value; 0 frees it.
pub fn set_references(cache: &Cache, log: &Log, id: StorageId, value: u32, references: u32, wait: &dyn Wait) -> Result<()> {
    let key = |chunk| PageKey { storage: id, page: PageNumber::overflow(value, chunk) };
    let total = cache.read(key(0), wait)?.shared(wait)?.page().overflow_total();
    let chunks = (total as usize).div_ceil(OVERFLOW_PAYLOAD) as u32;
    for chunk in (0..if references == 0 { chunks } else { 1 }).rev() {
        let pin = cache.read(key(chunk), wait)?;
        let guard = pin.exclusive(wait)?;
        let mut record = RecordBuilder::new();
        describe(guard.page(), key(chunk), &mut record, |record| {
            if references == 0 {
                record.free();
            } else {
                record.refcount(references);
            }
        });
        apply(log, &mut [guard], &record);
    }
    Ok(())
}

/// Gives a row an xmax, or takes it away.
pub fn delete_row(cache: &Cache, log: &Log, key: PageKey, offset: u16, xmax: u64, wait: &dyn Wait) -> Result<Lsn> {
    let pin = cache.read(key, wait)?;
    let guard = pin.exclusive(wait)?;
    let header = guard.page().version(offset).ok_or_else(|| Error::internal("no row"))?.header();
    let mut record = RecordBuilder::new();
    describe(guard.page(), key, &mut record, |record| {
        record.header(offset, &Header { xmax, ..header });
    });
    Ok(apply(log, &mut [guard], &record))
}

/// Values from here on are named by a row.
const FIRST_NAMED_VALUE: u32 = 1000;

/// One random change of a storage, as a backend makes it; returns the end of its record.
pub fn random_change(
    cache: &Cache,
    log: &Log,
    id: StorageId,
    random: &mut Random,
    most_blocks: u32,
    wait: &dyn Wait,
) -> Result<Lsn> {
    let place = cache.storages().find_id(id).ok_or_else(|| Error::internal("no storage"))?;
    let descriptor = cache.storages().at(place);
    let mut record = RecordBuilder::new();
    let blocks = descriptor.blocks.load(Ordering::SeqCst);
    if blocks < most_blocks && (blocks < 3 || random.below(4) == 0) {
        let key = PageKey::block(id, descriptor.blocks.fetch_add(1, Ordering::SeqCst));
        if random.below(6) == 0 {
            let value = FIRST_NAMED_VALUE + key.page.0 as u32;
            let bytes: Vec<u8> = (0..1 + random.below(70_000)).map(|_| random.below(256) as u8).collect();
            return insert_value(cache, log, key, value, &bytes, wait);
        }
        let pin = cache.create_page(key, wait)?;
        let guard = pin.exclusive(wait)?;
        describe(guard.page(), key, &mut record, |record| describe_insertion(guard.page(), key, random, record));
        return Ok(apply(log, &mut [guard], &record));
    }
    if random.below(8) == 0 {
        let value = FIRST_NAMED_VALUE + random.below(u64::from(blocks)) as u32;
        let key = PageKey { storage: id, page: PageNumber::overflow(value, 0) };
        let pin = cache.read(key, wait)?;
        let guard = pin.exclusive(wait)?;
        if guard.page().kind() == PageKind::Overflow {
            describe(guard.page(), key, &mut record, |record| {
                record.refcount(1 + random.below(3) as u32);
            });
            return Ok(apply(log, &mut [guard], &record));
        }
    }
    if blocks < most_blocks && random.below(8) == 0 {
        return give_block(cache, log, id, descriptor, random, wait);
    }
    if random.below(5) == 0 {
        let value = 1 + random.below(40) as u32;
        descriptor.next_value.fetch_max(value + 1, Ordering::SeqCst);
        let key = PageKey { storage: id, page: PageNumber::overflow(value, 0) };
        let pin = cache.read(key, wait)?;
        let guard = pin.exclusive(wait)?;
        describe(guard.page(), key, &mut record, |record| describe_overflow(guard.page(), random, record));
        return Ok(apply(log, &mut [guard], &record));
    }
    let first = PageKey::block(id, random.below(u64::from(blocks)) as u32);
    let second = PageKey::block(id, random.below(u64::from(blocks)) as u32);
    let pin = cache.read(first, wait)?;
    if first < second && random.below(3) == 0 {
        let second_pin = cache.read(second, wait)?;
        let guards = [pin.exclusive(wait)?, second_pin.exclusive(wait)?];
        for (guard, key) in guards.iter().zip([first, second]) {
            describe(guard.page(), key, &mut record, |record| describe_insertion(guard.page(), key, random, record));
        }
        let mut guards = guards;
        return Ok(apply(log, &mut guards, &record));
    }
    let guard = pin.exclusive(wait)?;
    if guard.page().kind() == PageKind::Data && random.below(3) == 0 {
        describe(guard.page(), first, &mut record, |record| describe_header_change(guard.page(), random, record));
    } else {
        describe(guard.page(), first, &mut record, |record| describe_insertion(guard.page(), first, random, record));
    }
    Ok(apply(log, &mut [guard], &record))
}

/// What the log says: the pages and storages after all its records.
#[derive(Default)]
pub struct Model {
    pub pages: BTreeMap<PageKey, Box<[u8; PAGE_SIZE]>>,
    pub storages: BTreeMap<StorageId, RelationFile>,
    /// The highest id that was given out, whatever became of it.
    pub highest: StorageId,
}

impl Model {
    pub fn of(log: &Log) -> Model {
        let mut model = Model::default();
        for (end, payload) in log.records(Lsn(0)) {
            let record = Record::decode(&payload).unwrap();
            if let Some(create) = record.create_storage() {
                let StorageCreate { storage, tablespace, database, relnumber, owner, .. } = create;
                model.highest = model.highest.max(storage);
                model.storages.insert(storage, RelationFile { tablespace, database, relnumber, owner });
            }
            for group in record.groups() {
                let page = model.pages.entry(group.key).or_insert_with(|| Box::new([0; PAGE_SIZE]));
                apply_group(&group, end, &mut PageMut::new(&mut page[..])).unwrap();
            }
        }
        model
    }

    pub fn forget(&mut self, id: StorageId) {
        self.storages.remove(&id);
        self.pages.retain(|key, _| key.storage != id);
    }

    /// Compares every page and storage with what the cache gives.
    pub fn check(&self, cache: &Cache, wait: &dyn Wait) {
        assert!(cache.header().next_storage_id.load(Ordering::SeqCst) > self.highest.0);
        for (id, file) in &self.storages {
            let place = cache.storages().find(file).unwrap_or_else(|| panic!("storage {id:?} is gone"));
            assert_eq!(cache.storages().at(place).id(), *id);
        }
        for (key, expected) in &self.pages {
            let pin = cache.read(*key, wait).unwrap();
            let guard = pin.shared(wait).unwrap();
            cold::assert_same(guard.page(), Page::new(&expected[..]), *key);
            let descriptor = cache.storages().at(cache.storages().find_id(key.storage).unwrap());
            if let Some(block) = key.page.as_block() {
                assert!(descriptor.blocks.load(Ordering::SeqCst) > block, "{key:?}");
            }
            if let Some(number) = key.page.as_chains() {
                let given = (0..CHAIN_FANOUT).rev().find(|index| Page::new(&expected[..]).chain_entry(*index).partition != 0);
                let least = given.map_or(0, |index| number * CHAIN_FANOUT + index + 1);
                assert!(descriptor.blocks.load(Ordering::SeqCst) >= least, "{key:?}");
            }
            if let Some((value, _)) = key.page.as_overflow() {
                assert!(descriptor.next_value.load(Ordering::SeqCst) > value, "{key:?}");
            }
        }
    }
}
