//! What the benchmarks share: pgbench, medians, and a server whose log is shown when something fails.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::process::{Pid, signal};
use crate::{Cluster, ClusterOptions, Installation, StopMode};

/// Gives a new server to `measure`, and stops it. The end of its log is shown when `measure` fails, and the server stays then.
pub fn on_server<T>(
    installation: &Installation,
    options: &ClusterOptions,
    measure: impl FnOnce(&mut Cluster) -> Result<T>,
) -> Result<T> {
    let mut cluster = Cluster::create(installation, options)?;
    let outcome = cluster.start(Duration::from_secs(60)).and_then(|()| measure(&mut cluster));
    if outcome.is_err() {
        eprintln!("end of the server's log:\n{}", cluster.log_tail(30));
    }
    let outcome = outcome?;
    cluster.stop(StopMode::Fast, Duration::from_secs(120))?;
    Ok(outcome)
}

/// Settings from names and values.
pub fn settings(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// Starts pgbench; `options` are those of its sessions.
pub fn start_pgbench(
    cluster: &Cluster,
    database: &str,
    options: &str,
    arguments: &[String],
    clients: u32,
    seconds: u32,
) -> Result<Child> {
    let child = cluster
        .client_command("pgbench", database)
        .env("PGOPTIONS", options)
        .args(["-n", &format!("-c{clients}"), &format!("-j{}", clients.min(2)), &format!("-T{seconds}")])
        .args(["-M", "prepared"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    Ok(child)
}

/// How long one of two runs goes on before it is the other one's turn: far less than what changes on a shared machine, far more than what
/// stopping takes.
const SLICE: Duration = Duration::from_millis(50);
/// Time for the sessions to begin.
const BEGINNING: Duration = Duration::from_millis(300);

/// Lets two runs of pgbench go on by turns until their time is over; the transactions per second of each while it was its turn. Whatever
/// else the machine does meets both alike.
pub fn in_slices(mut runs: [Child; 2]) -> Result<[f64; 2]> {
    std::thread::sleep(BEGINNING);
    let pids = [runs[0].id() as Pid, runs[1].id() as Pid];
    pids.iter().for_each(|pid| signal(*pid, libc::SIGSTOP));
    let mut turn = 0;
    while runs[0].try_wait()?.is_none() || runs[1].try_wait()?.is_none() {
        // The first one goes first in every other pair of slices.
        let side = usize::from(matches!(turn % 4, 1 | 2));
        turn += 1;
        if runs[side].try_wait()?.is_none() {
            signal(pids[side], libc::SIGCONT);
            std::thread::sleep(SLICE);
            if runs[side].try_wait()?.is_none() {
                signal(pids[side], libc::SIGSTOP);
            }
        }
    }
    let [first, second] = runs;
    // Each had half of the time that pgbench divides by.
    Ok([2.0 * transactions_per_second(first)?, 2.0 * transactions_per_second(second)?])
}

/// Waits for a pgbench; its transactions per second.
pub fn transactions_per_second(pgbench: Child) -> Result<f64> {
    let output = pgbench.wait_with_output()?;
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let complaint =
        || anyhow!("pgbench: {}", errors.lines().filter(|line| line.contains("error")).take(3).collect::<Vec<_>>().join("; "));
    ensure!(output.status.success() && !errors.contains("ERROR:"), complaint());
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")).and_then(|rest| rest.split(' ').next());
    tps.and_then(|tps| tps.parse().ok()).with_context(|| format!("pgbench printed no tps:\n{text}"))
}

/// The middle value; the mean of the two middle ones of an even number.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians_are_those_of_the_sorted_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
