//! A private PostgreSQL cluster: made, started, stopped, killed and cleared away by the program that owns it.
//!
//! The postmaster is a direct child of this process (no `pg_ctl` between), so its pid is certain, and the kernel stops it when this
//! process dies: a test program that is killed leaves no server behind.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use postgres::{Client, NoTls};

use crate::args::Args;
use crate::process::{self, Pid, Process};
use crate::sql;

const SUPERUSER: &str = "postgres";

/// Which server binaries and which access method a run is about, from the environment.
#[derive(Debug, Clone)]
pub struct Installation {
    pub bin: PathBuf,
    /// Table access method under test (`AM`, default `kalam_shared`).
    pub method: String,
    /// Value of `shared_preload_libraries` (`PRELOAD`; default `kalamdb` for the extension's access methods); empty for none.
    pub preload: String,
}

impl Installation {
    /// As [`Installation::from_env`]; with the flag `no-preload` the library is loaded on demand.
    ///
    /// # Errors
    /// As [`Installation::from_env`].
    pub fn for_program(args: &Args) -> Result<Self> {
        let mut installation = Self::from_env()?;
        if args.flag("no-preload") {
            installation.preload.clear();
        }
        Ok(installation)
    }

    /// `PG_BIN` names the directory of the binaries; otherwise `PG_CONFIG` (default `pg_config`) is asked.
    pub fn from_env() -> Result<Self> {
        let bin = match std::env::var_os("PG_BIN") {
            Some(bin) => PathBuf::from(bin),
            None => {
                let pg_config = std::env::var_os("PG_CONFIG").unwrap_or_else(|| "pg_config".into());
                let output =
                    Command::new(&pg_config).arg("--bindir").output().with_context(|| format!("{pg_config:?} --bindir"))?;
                ensure!(output.status.success(), "{pg_config:?} --bindir failed");
                PathBuf::from(String::from_utf8(output.stdout)?.trim())
            }
        };
        ensure!(bin.join("postgres").exists(), "no postgres binary in {}", bin.display());
        let method = std::env::var("AM").unwrap_or_else(|_| "kalam_shared".into());
        let default_preload = if method.starts_with("kalam") { "kalamdb" } else { "" };
        let preload = std::env::var("PRELOAD").unwrap_or_else(|_| default_preload.into());
        Ok(Installation { bin, method, preload })
    }

    pub fn is_extension(&self) -> bool {
        self.method.starts_with("kalam")
    }
}

/// How a cluster is made.
pub struct ClusterOptions {
    /// Beginning of the directory's name.
    pub name: &'static str,
    /// Lines of `postgresql.conf`.
    pub settings: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    Fast,
    Immediate,
}

pub struct Cluster {
    installation: Installation,
    directory: PathBuf,
    data: PathBuf,
    owner: Option<(u32, u32)>,
    postmaster: Option<Child>,
    keep: bool,
}

impl Cluster {
    /// Makes the data directory; the server is not started yet.
    pub fn create(installation: &Installation, options: &ClusterOptions) -> Result<Self> {
        let base = std::env::var_os("KALAM_SERVER_DIR").map(PathBuf::from).unwrap_or_else(std::env::temp_dir);
        fs::create_dir_all(&base).with_context(|| format!("cannot make {}", base.display()))?;
        let directory = base.join(format!("kalamdb-{}-{}", options.name, std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        // Other users must reach the socket, nothing else.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o711))?;
        let directory = directory.canonicalize()?;
        let owner = server_owner()?;
        if let Some((uid, gid)) = owner {
            chown(&directory, Some(uid), Some(gid))?;
        }
        let data = directory.join("data");
        let cluster = Cluster { installation: installation.clone(), directory, data, owner, postmaster: None, keep: false };
        cluster.initdb(options)?;
        Ok(cluster)
    }

    fn initdb(&self, options: &ClusterOptions) -> Result<()> {
        let output = self
            .server_command("initdb")
            .arg("-D")
            .arg(&self.data)
            .args(["-U", SUPERUSER, "--auth=trust", "--no-sync", "--no-locale", "-E", "UTF8"])
            .output()?;
        ensure!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        let mut configuration = fs::read_to_string(self.data.join("postgresql.conf"))?;
        let fixed = [
            ("listen_addresses", String::new()),
            ("unix_socket_directories", self.directory.display().to_string()),
            ("shared_preload_libraries", self.installation.preload.clone()),
            // With the SQLSTATE in each line, internal errors can be found in the log.
            ("log_line_prefix", "%m [%p] %b %e ".into()),
        ];
        let given = options.settings.iter().map(|(name, value)| (name.as_str(), value.clone()));
        for (name, value) in fixed.into_iter().chain(given) {
            configuration.push_str(&format!("{name} = {}\n", sql::literal(&value)));
        }
        fs::write(self.data.join("postgresql.conf"), configuration)?;
        Ok(())
    }

    /// A command of the installation that runs as the cluster's owner.
    fn server_command(&self, program: &str) -> Command {
        let mut command = Command::new(self.installation.bin.join(program));
        command.current_dir("/").stdin(Stdio::null());
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// A client program of the installation (pgbench, psql, pg_dump) with this cluster as its server.
    pub fn client_command(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(self.installation.bin.join(program));
        command.env("PGHOST", &self.directory).env("PGUSER", SUPERUSER).env("PGDATABASE", database).env_remove("PGPORT");
        command.env_remove("PGOPTIONS").stdin(Stdio::null());
        command
    }

    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The directory around the data directory; also holds the socket and the log.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn log_path(&self) -> PathBuf {
        self.directory.join("server.log")
    }

    /// Leaves the directory in place when the cluster goes away.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Starts a postmaster without waiting for it. The calling thread must outlive the server: the kernel's "parent died" signal
    /// is tied to the thread that started it.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.postmaster.is_none(), "the postmaster is already there");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = self.server_command("postgres");
        command.arg("-D").arg(&self.data).stdout(log.try_clone()?).stderr(log).process_group(0);
        // SAFETY: prctl(2) is async-signal-safe and touches no memory; it runs after the switch of user, which would clear the setting.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        self.postmaster = Some(command.spawn().context("cannot start postgres")?);
        Ok(())
    }

    /// Starts the server, unless it runs, and waits until a session can be opened. A start that fails because processes of a killed
    /// postmaster still hold the shared memory is repeated.
    pub fn start(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            if self.postmaster.is_none() {
                self.launch()?;
            }
            if self.connect("postgres").is_ok() {
                return Ok(());
            }
            let mark = self.log_length();
            if !self.postmaster_lives() {
                let log = self.log_since(mark.saturating_sub(4000))?;
                if !log.contains("pre-existing shared memory block")
                    && !log.contains("lock file \"postmaster.pid\" already exists")
                {
                    bail!("the server does not start:\n{}", self.log_tail(40));
                }
                if Instant::now() > deadline {
                    bail!("processes of the killed postmaster stay:\n{}", self.describe_hang());
                }
            }
            if Instant::now() > deadline {
                bail!("the server accepts no session after {patience:?}:\n{}\n{}", self.describe_hang(), self.log_tail(40));
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// Whether the postmaster runs; forgets one that ended.
    pub fn postmaster_lives(&mut self) -> bool {
        match self.postmaster.as_mut().map(Child::try_wait) {
            None => false,
            Some(Ok(None)) => true,
            Some(_) => {
                self.postmaster = None;
                false
            }
        }
    }

    pub fn postmaster_pid(&self) -> Option<Pid> {
        self.postmaster.as_ref().map(|child| child.id() as Pid)
    }

    /// Stops the server and waits for the postmaster's end.
    pub fn stop(&mut self, mode: StopMode, patience: Duration) -> Result<()> {
        let Some(pid) = self.postmaster_pid() else { return Ok(()) };
        process::signal(pid, if mode == StopMode::Fast { libc::SIGINT } else { libc::SIGQUIT });
        let deadline = Instant::now() + patience;
        while self.postmaster_lives() {
            if Instant::now() > deadline {
                bail!("the server does not stop ({mode:?}) within {patience:?}:\n{}", self.describe_hang());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// `kill -9` of the postmaster alone; its children notice by themselves.
    pub fn kill_postmaster(&mut self) {
        if let Some(mut child) = self.postmaster.take() {
            process::signal(child.id() as Pid, libc::SIGKILL);
            // Reaping a killed child cannot fail in a way that matters: it is gone either way.
            child.wait().ok();
        }
    }

    pub fn processes(&self) -> Vec<Process> {
        process::of_cluster(&self.data)
    }

    pub fn describe_processes(&self) -> String {
        self.processes().iter().map(Process::describe).collect::<Vec<_>>().join("\n")
    }

    /// What every process is doing, for the report of a server that hangs.
    pub fn describe_hang(&self) -> String {
        process::describe_hang(&self.processes())
    }

    pub fn configuration(&self, database: &str) -> postgres::Config {
        let mut configuration = postgres::Config::new();
        configuration.host_path(&self.directory).user(SUPERUSER).dbname(database).connect_timeout(Duration::from_secs(10));
        configuration
    }

    pub fn connect(&self, database: &str) -> Result<Client, postgres::Error> {
        self.configuration(database).connect(NoTls)
    }

    /// Makes a database in which the access method can be used.
    pub fn create_database(&self, name: &str) -> Result<Client> {
        self.connect("postgres")?.batch_execute(&format!("CREATE DATABASE {name}"))?;
        let mut client = self.connect(name)?;
        if self.installation.is_extension() {
            client.batch_execute("CREATE EXTENSION kalamdb").context("CREATE EXTENSION kalamdb")?;
        }
        Ok(client)
    }

    pub fn log_length(&self) -> u64 {
        fs::metadata(self.log_path()).map(|metadata| metadata.len()).unwrap_or(0)
    }

    pub fn log_since(&self, offset: u64) -> Result<String> {
        let mut file = File::open(self.log_path())?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Nobody but the test may crash a process, and no internal error may be reported since `mark`, those aside that contain a text of
    /// `expected`. Returns the next mark.
    pub fn require_sound_log(&self, mark: u64, expected: &[&str]) -> Result<u64> {
        let next = self.log_length();
        let log = self.log_since(mark)?;
        let crash_signals = [4, 6, 7, 8, 11].map(|signal| format!("was terminated by signal {signal}:"));
        let bad = |line: &&str| {
            let internal = [" XX000 ", " XX001 ", " XX002 ", "PANIC:", "TRAP:"].iter().any(|mark| line.contains(mark));
            (internal || crash_signals.iter().any(|mark| line.contains(mark))) && !expected.iter().any(|text| line.contains(text))
        };
        let lines: Vec<&str> = log.lines().filter(bad).take(10).collect();
        ensure!(lines.is_empty(), "in the server's log:\n{}", lines.join("\n"));
        Ok(next)
    }

    /// The log's last lines, without the refusals that waiting for a starting server makes.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log_since(self.log_length().saturating_sub(64 * 1024)).unwrap_or_default();
        let all: Vec<&str> = log.lines().filter(|line| !line.contains(" 57P03 ")).collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // An immediate stop also gives shared memory back, which SIGKILL would not.
        if self.stop(StopMode::Immediate, Duration::from_secs(10)).is_err() {
            self.kill_postmaster();
        }
        if !process::wait_all_gone(&self.data, Duration::from_secs(5)) {
            for process in self.processes() {
                eprintln!("killing a process that outlived its server: {}", process.describe());
                process::signal(process.pid, libc::SIGKILL);
            }
            process::wait_all_gone(&self.data, Duration::from_secs(5));
        }
        if self.keep {
            eprintln!("kept: {}", self.directory.display());
        } else if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("cannot remove {}: {error}", self.directory.display());
        }
    }
}

/// User and group of the server's processes: Postgres refuses to run as root, so root lends it another user (`KALAM_SERVER_USER`, default
/// `postgres`).
fn server_owner() -> Result<Option<(u32, u32)>> {
    // SAFETY: geteuid(2) has no arguments and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(None);
    }
    let name = std::env::var("KALAM_SERVER_USER").unwrap_or_else(|_| "postgres".into());
    let passwd = fs::read_to_string("/etc/passwd")?;
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name);
    let fields = entry.with_context(|| format!("run by root, a user {name:?} is needed to own the server"))?;
    ensure!(fields.len() > 3, "malformed /etc/passwd");
    Ok(Some((fields[2].parse()?, fields[3].parse()?)))
}
