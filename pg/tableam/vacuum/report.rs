//! Tells the user and the server's log what a VACUUM did, in the words that heap's VACUUM uses.

use std::ffi::{CStr, c_char};
use std::fmt::Write;
use std::time::{Duration, Instant};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

use super::super::status::narrow;
use super::{Vacuum, compat};

/// The full name of a table.
pub struct TableName {
    database: String,
    schema: String,
    table: String,
}

/// A palloc'ed string of Postgres; an empty one if the object has just gone.
unsafe fn text(pointer: *mut c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the caller passes a terminated string.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

impl TableName {
    /// The name of an open table.
    ///
    /// # Safety
    /// The relation is open.
    pub unsafe fn of(rel: pg_sys::Relation) -> TableName {
        // SAFETY: see above; the functions return copies.
        unsafe {
            TableName {
                database: text(pg_sys::get_database_name(pg_sys::MyDatabaseId)),
                schema: text(pg_sys::get_namespace_name((*(*rel).rd_rel).relnamespace)),
                table: super::super::storage::relation_name(rel),
            }
        }
    }

    /// Tells that the work begins.
    pub fn announce(&self, aggressive: bool) {
        let how = if aggressive { "aggressively vacuuming" } else { "vacuuming" };
        pgrx::info!("{how} \"{self}\"");
    }

    /// Tells that only freezing is done from now on.
    pub fn warn_of_emergency(&self, rounds: i32) {
        let message = format!("bypassing nonessential maintenance of table \"{self}\" as a failsafe after {rounds} index scans");
        ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message, "kalamdb")
            .set_detail("The table's relfrozenxid or relminmxid is too far in the past.")
            .set_hint(
                "Consider increasing configuration parameter \"maintenance_work_mem\" or \"autovacuum_work_mem\".\n\
                 You might also need to consider other ways for VACUUM to keep up with the allocation of transaction IDs.",
            )
            .report(PgLogLevel::WARNING);
    }

    fn tell(verbose: bool, message: &str) {
        if verbose {
            pgrx::info!("{message}");
        } else {
            pgrx::debug2!("{message}");
        }
    }

    /// Tells that somebody else uses the table.
    pub fn tell_truncation_stopped(&self, verbose: bool) {
        TableName::tell(verbose, &format!("\"{}\": stopping truncate due to conflicting lock request", self.table));
    }

    /// Tells that somebody waits for the table.
    pub fn tell_truncation_suspended(&self, verbose: bool) {
        TableName::tell(verbose, &format!("table \"{}\": suspending truncate due to conflicting lock request", self.table));
    }

    /// Tells that blocks were given back.
    pub fn tell_truncated(&self, verbose: bool, old: u32, new: u32) {
        TableName::tell(verbose, &format!("table \"{}\": truncated {old} to {new} pages", self.table));
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.database, self.schema, self.table)
    }
}

/// The state of clocks and counters when the work began.
pub struct Beginning {
    /// Postgres' clock.
    pub time: pg_sys::TimestampTz,
    clock: Instant,
    user: Duration,
    system: Duration,
    buffers: pg_sys::BufferUsage,
    log: pg_sys::WalUsage,
}

impl Beginning {
    /// The state now.
    pub fn now() -> Beginning {
        let (user, system) = processor_time();
        // SAFETY: plain globals of the backend's only thread.
        let (time, buffers, log) = unsafe { (pg_sys::GetCurrentTimestamp(), pg_sys::pgBufferUsage, pg_sys::pgWalUsage) };
        Beginning { time, clock: Instant::now(), user, system, buffers, log }
    }
}

/// The processor time this process has used, in user and system mode.
fn processor_time() -> (Duration, Duration) {
    // SAFETY: zero is a valid value of the plain struct, which the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let duration = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    (duration(usage.ru_utime), duration(usage.ru_stime))
}

/// A part of a whole in per cent; 100 of nothing.
fn percent(part: u32, whole: u32) -> f64 {
    if whole == 0 { 100.0 } else { 100.0 * f64::from(part) / f64::from(whole) }
}

impl Vacuum {
    /// Reports the run: to the user with VERBOSE, to the log if autovacuum's run took long enough.
    ///
    /// `moved` says whether relfrozenxid and relminmxid moved on.
    pub fn report(&self, params: &pg_sys::VacuumParams, beginning: &Beginning, moved: (bool, bool)) {
        // SAFETY: compares two times.
        let took_long = || unsafe {
            let now = pg_sys::GetCurrentTimestamp();
            pg_sys::TimestampDifferenceExceeds(beginning.time, now, params.log_min_duration)
        };
        let logged = compat::is_autovacuum() && params.log_min_duration >= 0 && (params.log_min_duration == 0 || took_long());
        if !self.verbose && !logged {
            return;
        }
        let mut text = format!("{} of table", self.kind(params.is_wraparound));
        if self.verbose {
            text = "finished vacuuming".to_owned();
        }
        let _ = writeln!(text, " \"{}\": index scans: {}", self.name, self.indexes.rounds);
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut text, moved);
        let _ = self.write_indexes(&mut text);
        let _ = write_resources(&mut text, beginning);
        if self.verbose {
            pgrx::info!("{text}");
        } else {
            pgrx::log!("{text}");
        }
    }

    fn kind(&self, is_wraparound: bool) -> &'static str {
        match (is_wraparound, self.aggressive) {
            (true, true) => "automatic aggressive vacuum to prevent wraparound",
            (true, false) => "automatic vacuum to prevent wraparound",
            (false, true) => "automatic aggressive vacuum",
            (false, false) => "automatic vacuum",
        }
    }

    fn write_table(&self, text: &mut String, moved: (bool, bool)) -> std::fmt::Result {
        let counts = &self.counts;
        let old_pages = self.pages + counts.removed_pages;
        let scanned = percent(counts.scanned_pages, old_pages);
        writeln!(
            text,
            "pages: {} removed, {} remain, {} scanned ({scanned:.2}% of total)",
            counts.removed_pages, self.pages, counts.scanned_pages
        )?;
        if counts.cold_pages > 0 {
            writeln!(text, "pages not scanned because they are cold: {}", counts.cold_pages)?;
        }
        writeln!(
            text,
            "tuples: {} removed, {} remain, {} are dead but not yet removable",
            counts.removed_versions,
            self.versions_left() as i64,
            counts.recently_dead
        )?;
        if counts.missed_dead > 0 {
            let (missed, pages) = (counts.missed_dead, counts.missed_pages);
            writeln!(text, "tuples missed: {missed} dead from {pages} pages not removed due to cleanup lock contention")?;
        }
        if counts.freed_values > 0 {
            writeln!(text, "large values that no tuple named: {} removed", counts.freed_values)?;
        }
        let cutoff = self.cutoffs.oldest_xmin.into_inner();
        let age = (compat::next_xid() as u32).wrapping_sub(cutoff) as i32;
        writeln!(text, "removable cutoff: {cutoff}, which was {age} XIDs old when operation ended")?;
        if moved.0 {
            let new = narrow(self.remaining.oldest_xid).into_inner();
            let ahead = new.wrapping_sub(self.cutoffs.relfrozenxid.into_inner()) as i32;
            writeln!(text, "new relfrozenxid: {new}, which is {ahead} XIDs ahead of previous value")?;
        }
        if moved.1 {
            let new = self.remaining.oldest_multi;
            let ahead = new.wrapping_sub(self.cutoffs.relminmxid.into_inner()) as i32;
            writeln!(text, "new relminmxid: {new}, which is {ahead} MXIDs ahead of previous value")?;
        }
        Ok(())
    }

    fn write_indexes(&self, text: &mut String) -> std::fmt::Result {
        let counts = &self.counts;
        let (prefix, verb, past) = match (self.clean_indexes, self.in_emergency, self.indexes.rounds) {
            (true, _, 0) => ("index scan not needed", "had", " removed"),
            (true, _, _) => ("index scan needed", "had", " removed"),
            (false, false, _) => ("index scan bypassed", "have", ""),
            (false, true, _) => ("index scan bypassed by failsafe", "have", ""),
        };
        let share = percent(counts.dead_line_pages, self.pages + counts.removed_pages);
        writeln!(
            text,
            "{prefix}: {} pages from table ({share:.2}% of total) {verb} {} dead item identifiers{past}",
            counts.dead_line_pages, counts.dead_lines
        )?;
        for (name, &found) in self.indexes.names.iter().zip(&self.indexes.statistics) {
            // SAFETY: null, or the access method's statistics in memory of this command.
            let Some(found) = (unsafe { found.as_ref() }) else { continue };
            writeln!(
                text,
                "index \"{name}\": pages: {} in total, {} newly deleted, {} currently deleted, {} reusable",
                found.num_pages, found.pages_newly_deleted, found.pages_deleted, found.pages_free
            )?;
        }
        Ok(())
    }
}

/// What the run cost. The buffers are Postgres' own: those of the indexes.
fn write_resources(text: &mut String, beginning: &Beginning) -> std::fmt::Result {
    // SAFETY: plain globals of the backend's only thread.
    let (buffers, log) = unsafe { (pg_sys::pgBufferUsage, pg_sys::pgWalUsage) };
    let old = &beginning.buffers;
    let hits = buffers.shared_blks_hit - old.shared_blks_hit + buffers.local_blks_hit - old.local_blks_hit;
    let misses = buffers.shared_blks_read - old.shared_blks_read + buffers.local_blks_read - old.local_blks_read;
    let dirtied = buffers.shared_blks_dirtied - old.shared_blks_dirtied + buffers.local_blks_dirtied - old.local_blks_dirtied;
    let elapsed = beginning.clock.elapsed().as_secs_f64();
    let rate = |blocks: i64| blocks as f64 * f64::from(pg_sys::BLCKSZ) / f64::from(1 << 20) / elapsed.max(1e-6);
    writeln!(text, "avg read rate: {:.3} MB/s, avg write rate: {:.3} MB/s", rate(misses), rate(dirtied))?;
    writeln!(text, "buffer usage: {hits} hits, {misses} misses, {dirtied} dirtied")?;
    let (records, images) = (log.wal_records - beginning.log.wal_records, log.wal_fpi - beginning.log.wal_fpi);
    let bytes = log.wal_bytes - beginning.log.wal_bytes;
    writeln!(text, "WAL usage: {records} records, {images} full page images, {bytes} bytes")?;
    let (user, system) = processor_time();
    let (user, system) = (user.saturating_sub(beginning.user), system.saturating_sub(beginning.system));
    let (user, system) = (user.as_secs_f64(), system.as_secs_f64());
    write!(text, "system usage: CPU: user: {user:.2} s, system: {system:.2} s, elapsed: {elapsed:.2} s")
}
