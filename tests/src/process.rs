//! Finds and signals the processes of one cluster, by their working directory, so that no other server is ever touched.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub type Pid = i32;

/// A server process: Postgres keeps what it does in its title, for example `postgres: checkpointer`.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: Pid,
    pub title: String,
}

impl Process {
    /// A session of a client, not an auxiliary process or background worker.
    pub fn is_client_backend(&self) -> bool {
        self.title.starts_with("postgres:") && self.title.contains("[local]")
    }

    /// The extension's engine worker.
    pub fn is_engine_worker(&self) -> bool {
        self.title.starts_with("postgres:") && self.title.contains("kalamdb engine")
    }

    /// The startup process, which exists while the server recovers.
    pub fn is_startup(&self) -> bool {
        self.title.starts_with("postgres: startup")
    }

    pub fn is_auxiliary(&self) -> bool {
        ["checkpointer", "background writer", "walwriter"].iter().any(|kind| self.title.starts_with(&format!("postgres: {kind}")))
    }

    /// State and place of waiting, for the report of a server that hangs.
    pub fn describe(&self) -> String {
        let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("?").trim().to_string();
        format!("{:>8} {:<14} {:<24} {}", self.pid, state, read("wchan"), self.title)
    }
}

/// Where the processes stand, with their stacks when a debugger is installed: for the report of a hang.
pub fn describe_hang(processes: &[Process]) -> String {
    let stack = |process: &Process| {
        let arguments = ["-p", &process.pid.to_string(), "-batch", "-ex", "backtrace 25"];
        let output = Command::new("gdb").args(arguments).stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Some(text.lines().filter(|line| line.starts_with('#')).map(|line| format!("\n        {line}")).collect::<String>())
    };
    processes.iter().map(|process| format!("{}{}\n", process.describe(), stack(process).unwrap_or_default())).collect()
}

/// All live processes whose working directory is `data`: the postmaster and every child of it, also orphaned ones.
pub fn of_cluster(data: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<Process> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<Pid>().ok())
        .filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data))
        .filter_map(|pid| {
            let title = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            // A zombie has no command line any more.
            let title = String::from_utf8_lossy(&title).replace('\0', " ").trim().to_string();
            (!title.is_empty()).then_some(Process { pid, title })
        })
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// Sends a signal; a process that is already gone is no error.
pub fn signal(pid: Pid, signal: i32) {
    // SAFETY: kill(2) takes two integers and touches no memory of ours; the pid is a process of our own cluster.
    unsafe { libc::kill(pid, signal) };
}

/// Waits until no process of the cluster is left; false when some are still there at the end of `patience`.
pub fn wait_all_gone(data: &Path, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while !of_cluster(data).is_empty() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
