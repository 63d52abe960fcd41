//! Small measurements: latencies of lookups, memory of a process, empty caches.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use kalamdb_tests::process::Pid;
use postgres::Client;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Times of single lookups by key, in milliseconds and sorted.
pub fn lookups(client: &mut Client, table: &str, rows: u64, count: u32, seed: u64) -> Result<Vec<f64>> {
    let statement = client.prepare(&format!("SELECT * FROM {table} WHERE id = $1"))?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut times = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let id = rng.random_range(1..=rows) as i64;
        let begun = Instant::now();
        let found = client.query(&statement, &[&id])?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        anyhow::ensure!(found.len() == 1, "{} rows of {table} have the id {id}", found.len());
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The value below which `share` of the sorted values lie.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// Asks the system to forget the files it has in memory; false where that is not allowed.
pub fn drop_file_caches() -> bool {
    // SAFETY: takes nothing and only writes what is dirty.
    unsafe { libc::sync() };
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Watches how much private memory the job processes of a cluster have.
pub struct MemoryWatch {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl MemoryWatch {
    pub fn start(processes: impl Fn() -> Vec<Pid> + Send + 'static) -> MemoryWatch {
        let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&most));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for pid in processes() {
                    seen.fetch_max(private_bytes(pid), Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        MemoryWatch { stop, most, thread }
    }

    /// The most bytes that one process had at a time.
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        self.most.load(Ordering::Relaxed)
    }
}

fn private_bytes(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(percentile(&values[..1], 0.99), 1.0);
    }
}
