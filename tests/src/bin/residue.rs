//! Looks for texts in everything that a stopped server has on disk: in the plain bytes of files, in every value of the store, in every page
//! and large value of every segment. Ends with 1 if one is found, and says where.
//!
//! Left out is the server's log, which goes as the server recycles it. The store must be a copy: it is opened.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kalamdb_engine::segment::{FileSource, SegmentReader};
use kalamdb_engine::store::{Store, StoreOptions};

/// What is not looked at: Postgres' log in both forms.
const LEFT_OUT: [&str; 1] = ["pg_wal"];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().unwrap_or_default();
    let needles: Vec<Vec<u8>> = arguments.map(String::into_bytes).collect();
    match Search::run(Path::new(&directory), needles) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(found) => {
            println!("residue: found in {found} places");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("residue: {error:#}");
            ExitCode::from(2)
        }
    }
}

struct Search {
    root: PathBuf,
    needles: Vec<Vec<u8>>,
    found: u64,
}

impl Search {
    fn run(root: &Path, needles: Vec<Vec<u8>>) -> Result<u64> {
        if needles.is_empty() {
            bail!("usage: residue DIRECTORY TEXT...");
        }
        let mut search = Search { root: root.to_owned(), needles, found: 0 };
        search.walk(root)?;
        Ok(search.found)
    }

    fn walk(&mut self, directory: &Path) -> Result<()> {
        for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if LEFT_OUT.contains(&name.as_str()) || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                self.walk(&path)?;
                if path.join("CURRENT").is_file() && path.join("IDENTITY").is_file() {
                    self.store(&path)?;
                }
            } else if path.is_file() {
                self.look(&path, "bytes", &fs::read(&path)?);
                if name.ends_with(".parquet") {
                    self.segment(&path)?;
                }
            }
        }
        Ok(())
    }

    fn look(&mut self, path: &Path, place: &str, bytes: &[u8]) {
        for needle in &self.needles {
            if contains(bytes, needle) {
                let shown = path.strip_prefix(&self.root).unwrap_or(path).display();
                println!("{shown}: {place}: {}", String::from_utf8_lossy(needle));
                self.found += 1;
            }
        }
    }

    /// The files of the store are compressed: its values say what is in them, if they have nothing else.
    fn store(&mut self, directory: &Path) -> Result<()> {
        let store = Store::open(directory, &StoreOptions { automatic_compaction: false, ..StoreOptions::default() })?;
        let mut hits = Vec::new();
        let superseded = store.examine(&mut |family, key, value| {
            if self.needles.iter().any(|needle| contains(value, needle)) {
                hits.push((format!("{family} {}", hex(key)), value.to_vec()));
            }
        })?;
        for (place, value) in hits {
            self.look(directory, &place, &value);
        }
        if superseded > 0 {
            println!("{}: {superseded} entries that were overwritten or removed", directory.display());
            self.found += 1;
        }
        Ok(())
    }

    fn segment(&mut self, path: &Path) -> Result<()> {
        // Exports are Parquet files of other columns; what they have stands in the file of JSON lines beside them.
        if !path.file_name().unwrap_or_default().to_string_lossy().starts_with("segment-") {
            return Ok(());
        }
        let reader =
            SegmentReader::open(Arc::new(FileSource::new(File::open(path)?)?)).with_context(|| path.display().to_string())?;
        let summary = reader.summary()?;
        let mut image = Vec::new();
        for stub in &summary.blocks {
            reader.build_page(stub, &mut image)?;
            self.look(path, "page", &image);
        }
        for stub in &summary.values {
            let (value, _) = reader.read_value(stub)?;
            self.look(path, "value", &value);
        }
        Ok(())
    }
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
