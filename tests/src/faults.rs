//! The blows: which process is killed or how the server is stopped, and a second blow while it recovers.

use std::time::{Duration, Instant};

use crate::process::{self, Process};
use crate::{Cluster, StopMode};
use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillBackend,
    KillWorker,
    KillAuxiliary,
    KillPostmaster,
    KillAll,
    ImmediateStop,
    FastStop,
}

impl Fault {
    const NAMES: [(&str, Fault); 7] = [
        ("backend", Fault::KillBackend),
        ("worker", Fault::KillWorker),
        ("auxiliary", Fault::KillAuxiliary),
        ("postmaster", Fault::KillPostmaster),
        ("all", Fault::KillAll),
        ("immediate", Fault::ImmediateStop),
        ("fast", Fault::FastStop),
    ];

    /// The faults named, or all that make sense for the access method.
    pub fn selection(names: &[String], has_worker: bool) -> Result<Vec<Fault>> {
        if names.is_empty() {
            let all = Self::NAMES.iter().map(|(_, fault)| *fault);
            return Ok(all.filter(|fault| has_worker || *fault != Fault::KillWorker).collect());
        }
        let find = |name: &String| Self::NAMES.iter().find(|(known, _)| known == name).map(|(_, fault)| *fault);
        names.iter().map(|name| find(name).with_context(|| format!("unknown fault {name:?}"))).collect()
    }
}

/// What was done to the server.
pub struct Blow {
    pub description: String,
    /// The server was stopped in good order: nothing that was acknowledged may be lost, not even asynchronous commits.
    pub orderly: bool,
    /// The postmaster lives and resets the server by itself.
    postmaster_lives: bool,
    log_mark: u64,
}

/// Strikes once.
pub fn strike(cluster: &mut Cluster, fault: Fault, rng: &mut ChaCha8Rng) -> Result<Blow> {
    let log_mark = cluster.log_length();
    let mut orderly = false;
    let mut postmaster_lives = false;
    let description = match fault {
        Fault::KillBackend | Fault::KillWorker | Fault::KillAuxiliary => {
            let victim = choose_victim(cluster, fault, rng)?;
            process::signal(victim.pid, libc::SIGKILL);
            postmaster_lives = true;
            format!("kill -9 of \"{}\"", victim.title)
        }
        Fault::KillPostmaster => {
            cluster.kill_postmaster();
            "kill -9 of the postmaster".into()
        }
        Fault::KillAll => {
            cluster.kill_postmaster();
            cluster.processes().iter().for_each(|process| process::signal(process.pid, libc::SIGKILL));
            "kill -9 of all processes".into()
        }
        Fault::ImmediateStop => {
            cluster.stop(StopMode::Immediate, PATIENCE)?;
            "immediate stop".into()
        }
        Fault::FastStop => {
            cluster.stop(StopMode::Fast, PATIENCE)?;
            orderly = true;
            "fast stop".into()
        }
    };
    Ok(Blow { description, orderly, postmaster_lives, log_mark })
}

fn choose_victim(cluster: &Cluster, fault: Fault, rng: &mut ChaCha8Rng) -> Result<Process> {
    let fits = |process: &&Process| match fault {
        Fault::KillBackend => process.is_client_backend(),
        Fault::KillWorker => process.is_engine_worker(),
        _ => process.is_auxiliary(),
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let processes = cluster.processes();
        let victims: Vec<&Process> = processes.iter().filter(fits).collect();
        if let Some(victim) = victims.choose(rng) {
            return Ok((*victim).clone());
        }
        // An engine worker that is started on first use may only just be coming.
        ensure!(Instant::now() < deadline, "{fault:?}: no such process among\n{}", cluster.describe_processes());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the server has noticed the blow, so that a session opened afterwards belongs to the server after the crash.
pub fn wait_noticed(cluster: &mut Cluster, blow: &Blow) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while blow.postmaster_lives && cluster.postmaster_lives() {
        if cluster.log_since(blow.log_mark)?.contains("all server processes terminated; reinitializing") {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the server does not reset itself after {}:\n{}", blow.description, cluster.describe_hang());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    ensure!(
        blow.postmaster_lives || process::wait_all_gone(cluster.data(), PATIENCE),
        "processes outlive the postmaster after {}:\n{}",
        blow.description,
        cluster.describe_hang()
    );
    Ok(())
}

/// Strikes again while the server recovers from `first`.
pub fn strike_during_recovery(cluster: &mut Cluster, first: &Blow, rng: &mut ChaCha8Rng) -> Result<Blow> {
    wait_noticed(cluster, first)?;
    if !cluster.postmaster_lives() {
        cluster.launch()?;
    }
    let wait_for_startup = Instant::now() + Duration::from_secs(5);
    while !cluster.processes().iter().any(Process::is_startup) && Instant::now() < wait_for_startup && cluster.postmaster_lives()
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    let delay = Duration::from_millis(rng.random_range(0..250));
    std::thread::sleep(delay);
    let log_mark = cluster.log_length();
    let processes = cluster.processes();
    let victim = match rng.random_range(0..3) {
        0 => processes.iter().find(|process| process.is_startup()),
        1 => processes.iter().find(|process| process.is_engine_worker()),
        _ => None,
    };
    let Some(victim) = victim else {
        cluster.kill_postmaster();
        let description = format!("kill -9 of the postmaster {delay:?} into recovery");
        let second = Blow { description, orderly: false, postmaster_lives: false, log_mark };
        wait_noticed(cluster, &second)?;
        return Ok(second);
    };
    process::signal(victim.pid, libc::SIGKILL);
    let description = format!("kill -9 of \"{}\" {delay:?} into recovery", victim.title);
    let second = Blow { description, orderly: false, postmaster_lives: true, log_mark };
    // A killed startup process ends the postmaster, another child makes it reset: both are waited for.
    wait_noticed(cluster, &second)?;
    if !cluster.postmaster_lives() {
        ensure!(
            process::wait_all_gone(cluster.data(), PATIENCE),
            "processes outlive the postmaster:\n{}",
            cluster.describe_processes()
        );
    }
    Ok(second)
}
