//! A storage in an object store. Everything has a limit in time, and what the store answers is checked before it is believed.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{Certificate, ClientOptions};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{
    BackoffConfig, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, Result as StoreResult,
    RetryConfig,
};

use super::definition::{Address, Definition, Kind};
use super::failure::Attempt;
use super::io::{self, Pending};
use super::{Object, Stored};
use crate::cache::Wait;
use crate::error::{Error, ErrorKind, Result};

/// Files above this size are uploaded in parts of at least this size.
const PART_BYTES: usize = 8 << 20;
/// S3 allows 10,000 parts.
const PARTS_MAX: u64 = 9_000;
/// Parts under way at a time; each takes its size in memory.
const PARTS_AT_ONCE: usize = 3;
/// Ranges of one object under way at a time.
const RANGES_AT_ONCE: usize = 8;
/// What is read back of every upload: the end, where a Parquet file says where everything is.
const TAIL_BYTES: u64 = 64 << 10;

const TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);
const RETRIES: usize = 3;

/// An object store behind a prefix.
#[derive(Debug)]
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// Longest time of one request with all its repetitions.
    limit: Duration,
    verify: bool,
    closed: AtomicBool,
}

impl Remote {
    /// A client for a checked definition; nothing is asked of the store yet.
    pub fn open(definition: &Definition, address: Address) -> Result<Remote> {
        let store = client(definition, &address).map_err(|error| {
            let secrets = definition.secrets();
            let attempt = Attempt { storage: &definition.name, action: "open", object: "", secrets: &secrets };
            let failed = attempt.store(&error);
            // Whatever a builder dislikes is in the definition.
            Error::new(ErrorKind::InvalidInput, failed.message())
                .with_detail(failed.detail().unwrap_or_default())
                .with_hint("Correct the storage with kalam.alter_storage().")
        })?;
        let limit = definition.time("timeout", TIMEOUT) + definition.time("retry_timeout", RETRY_TIMEOUT);
        Ok(Remote::over(store, address.path, limit, definition.flag("verify_uploads")))
    }

    /// A given store.
    pub fn over(store: Arc<dyn ObjectStore>, prefix: String, limit: Duration, verify: bool) -> Remote {
        Remote { store, prefix, limit, verify, closed: AtomicBool::new(false) }
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn path(&self, object: &str) -> Result<Path> {
        let path = if self.prefix.is_empty() { object.to_owned() } else { format!("{}/{object}", self.prefix) };
        Path::parse(&path)
            .map_err(|error| Error::new(ErrorKind::InvalidInput, format!("invalid object path \"{path}\"")).with_source(error))
    }

    /// Begins a request.
    fn begin<T: Send + 'static>(
        &self,
        task: impl Future<Output = StoreResult<T>> + Send + 'static,
    ) -> Result<Pending<StoreResult<T>>> {
        io::begin(self.limit, task)
    }

    fn finish<T>(&self, pending: &Pending<StoreResult<T>>, attempt: &Attempt<'_>, wait: &dyn Wait) -> Result<T> {
        let wait = Closing { closed: &self.closed, storage: attempt.storage, wait };
        match pending.finish(&wait) {
            Ok(answer) => answer.map_err(|error| attempt.store(&error)),
            Err(reason) => Err(attempt.unfinished(reason)),
        }
    }

    fn run<T: Send + 'static>(
        &self,
        attempt: &Attempt<'_>,
        wait: &dyn Wait,
        task: impl Future<Output = StoreResult<T>> + Send + 'static,
    ) -> Result<T> {
        self.finish(&self.begin(task)?, attempt, wait)
    }

    /// Uploads a file and looks whether the store has it.
    pub fn put(&self, source: &FilePath, object: &str, attempt: &Attempt<'_>, wait: &dyn Wait) -> Result<Stored> {
        let path = self.path(object)?;
        let mut file = File::open(source)?;
        let length = file.metadata()?.len();
        let mut stored = Stored::default();
        let mut tail = Tail::default();
        if length <= PART_BYTES as u64 {
            let body = read_part(&mut file, PART_BYTES + 1, &mut stored, &mut tail)?;
            let store = Arc::clone(&self.store);
            let target = path.clone();
            self.run(attempt, wait, async move { store.put(&target, PutPayload::from_bytes(body)).await.map(drop) })?;
        } else {
            self.put_parts(&mut file, length, &path, &mut stored, &mut tail, attempt, wait)?;
        }
        if stored.bytes != length {
            return Err(Error::new(ErrorKind::Io, format!("file \"{}\" changed while it was read", source.display())));
        }
        self.verify_upload(object, &stored, &tail, attempt, wait)?;
        Ok(stored)
    }

    #[allow(clippy::too_many_arguments, reason = "one step of put(), taken out for its length")]
    fn put_parts(
        &self,
        file: &mut File,
        length: u64,
        path: &Path,
        stored: &mut Stored,
        tail: &mut Tail,
        attempt: &Attempt<'_>,
        wait: &dyn Wait,
    ) -> Result<()> {
        let (store, target) = (Arc::clone(&self.store), path.clone());
        let mut upload = self.run(attempt, wait, async move { store.put_multipart(&target).await })?;
        let done = self.send_parts(file, length, &mut *upload, stored, tail, attempt, wait);
        match done {
            Ok(()) => self.run(attempt, wait, async move { upload.complete().await.map(drop) }),
            Err(error) => {
                // Parts that stay behind are the bucket's lifecycle rules' to remove; the first error is the one to tell.
                if let Ok(pending) = self.begin(async move { upload.abort().await }) {
                    let _ = pending.finish(&Briefly::new());
                }
                Err(error)
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one step of put(), taken out for its length")]
    fn send_parts(
        &self,
        file: &mut File,
        length: u64,
        upload: &mut dyn MultipartUpload,
        stored: &mut Stored,
        tail: &mut Tail,
        attempt: &Attempt<'_>,
        wait: &dyn Wait,
    ) -> Result<()> {
        let part_bytes = PART_BYTES.max(length.div_ceil(PARTS_MAX) as usize);
        let mut under_way = std::collections::VecDeque::new();
        loop {
            let part = read_part(file, part_bytes, stored, tail)?;
            if part.is_empty() {
                break;
            }
            if under_way.len() == PARTS_AT_ONCE
                && let Some(first) = under_way.pop_front()
            {
                self.finish(&first, attempt, wait)?;
            }
            under_way.push_back(self.begin(upload.put_part(PutPayload::from_bytes(part)))?);
        }
        under_way.iter().try_for_each(|part| self.finish(part, attempt, wait))
    }

    fn verify_upload(&self, object: &str, stored: &Stored, tail: &Tail, attempt: &Attempt<'_>, wait: &dyn Wait) -> Result<()> {
        let attempt = Attempt { action: "verify the upload of", ..attempt.clone() };
        if self.verify {
            return self.verify(object, stored, &attempt, wait);
        }
        let from = stored.bytes - tail.bytes.len() as u64;
        if self.read(object, stored.bytes, from..stored.bytes, &attempt, wait)? != tail.bytes {
            return Err(attempt.corrupt("The end of the object is not what was written."));
        }
        Ok(())
    }

    /// Reads an object and compares length and checksum.
    pub fn verify(&self, object: &str, stored: &Stored, attempt: &Attempt<'_>, wait: &dyn Wait) -> Result<()> {
        let mut found = Stored::default();
        while found.bytes < stored.bytes {
            let end = stored.bytes.min(found.bytes + PART_BYTES as u64);
            found.add(&self.read(object, stored.bytes, found.bytes..end, attempt, wait)?);
        }
        if found != *stored {
            return Err(attempt.corrupt(format!("Its checksum is {:08x}, and must be {:08x}.", found.crc32c, stored.crc32c)));
        }
        Ok(())
    }

    /// Reads a range of an object of known length.
    pub fn read(&self, object: &str, bytes: u64, range: Range<u64>, attempt: &Attempt<'_>, wait: &dyn Wait) -> Result<Bytes> {
        let read = self.read_ranges(object, bytes, std::slice::from_ref(&range), attempt, wait)?;
        read.into_iter().next().ok_or_else(|| Error::internal("a read of one range answered none"))
    }

    /// Reads ranges of an object of known length, several at a time.
    pub fn read_ranges(
        &self,
        object: &str,
        bytes: u64,
        ranges: &[Range<u64>],
        attempt: &Attempt<'_>,
        wait: &dyn Wait,
    ) -> Result<Vec<Bytes>> {
        let path = self.path(object)?;
        let mut requests = Vec::with_capacity(ranges.len());
        for range in ranges {
            let (store, path, range) = (Arc::clone(&self.store), path.clone(), range.clone());
            requests.push(async move {
                // A store refuses an empty range; the object's size is what is asked for then.
                if range.is_empty() {
                    return store.head(&path).await.map(|found| (found.size, Bytes::new()));
                }
                let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
                let found = store.get_opts(&path, options).await?;
                let size = found.meta.size;
                Ok((size, found.bytes().await?))
            });
        }
        let all = futures::stream::iter(requests).buffered(RANGES_AT_ONCE).try_collect::<Vec<(u64, Bytes)>>();
        let answers = self.run(attempt, wait, all)?;
        for ((size, read), range) in answers.iter().zip(ranges) {
            if *size != bytes {
                return Err(attempt.corrupt(format!("It has {size} bytes, and must have {bytes}.")));
            }
            if read.len() as u64 != range.end - range.start {
                return Err(attempt.corrupt(format!(
                    "The storage answered {} bytes of {}.",
                    read.len(),
                    range.end - range.start
                )));
            }
        }
        Ok(answers.into_iter().map(|(_, read)| read).collect())
    }

    /// The object's length.
    pub fn size(&self, object: &str, attempt: &Attempt<'_>, wait: &dyn Wait) -> Result<u64> {
        let (store, path) = (Arc::clone(&self.store), self.path(object)?);
        self.run(attempt, wait, async move { store.head(&path).await.map(|found| found.size) })
    }

    pub fn delete(&self, object: &str, attempt: &Attempt<'_>, wait: &dyn Wait) -> Result<()> {
        let (store, path) = (Arc::clone(&self.store), self.path(object)?);
        self.run(attempt, wait, async move {
            match store.delete(&path).await {
                Err(object_store::Error::NotFound { .. }) => Ok(()),
                deleted => deleted,
            }
        })
    }

    pub fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        attempt: &Attempt<'_>,
        wait: &dyn Wait,
    ) -> Result<Vec<Object>> {
        let directory = prefix.trim_end_matches('/');
        let below = match (self.prefix.is_empty(), directory.is_empty()) {
            (true, true) => None,
            (false, true) => Some(self.prefix.clone()),
            _ => Some(self.path(directory)?.to_string()),
        };
        let below = below.map(|path| Path::parse(path).map_err(|error| attempt.store(&error.into()))).transpose()?;
        let after = after.map(|after| self.path(after)).transpose()?;
        let store = Arc::clone(&self.store);
        let found = self.run(attempt, wait, async move {
            let objects = match &after {
                Some(after) => store.list_with_offset(below.as_ref(), after),
                None => store.list(below.as_ref()),
            };
            objects.take(limit).try_collect::<Vec<_>>().await
        })?;
        let mut objects = Vec::with_capacity(found.len());
        for object in found {
            let path = object.location.as_ref();
            let path = match self.prefix.is_empty() {
                true => path,
                // Something else than was asked for is not ours.
                false => match path.strip_prefix(&self.prefix).and_then(|path| path.strip_prefix('/')) {
                    Some(path) => path,
                    None => continue,
                },
            };
            objects.push(Object { path: path.to_owned(), bytes: object.size, modified: SystemTime::from(object.last_modified) });
        }
        objects.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(objects)
    }
}

/// A wait that also ends when the storage is closed.
struct Closing<'a> {
    closed: &'a AtomicBool,
    storage: &'a str,
    wait: &'a dyn Wait,
}

impl Wait for Closing<'_> {
    fn pause(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Unavailable, format!("storage \"{}\" is being closed", self.storage))
                .with_detail("The engine stops, or the storage was changed.")
                .with_hint("Repeat the transaction."));
        }
        self.wait.pause()
    }
}

/// A wait of a second, for what is done after an error.
struct Briefly {
    until: std::time::Instant,
}

impl Briefly {
    fn new() -> Briefly {
        Briefly { until: std::time::Instant::now() + Duration::from_secs(1) }
    }
}

impl Wait for Briefly {
    fn pause(&self) -> Result<()> {
        match std::time::Instant::now() < self.until {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Unavailable, "gave up waiting")),
        }
    }
}

/// The last bytes of what was read.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL_BYTES as usize)..]);
        let beyond = self.bytes.len().saturating_sub(TAIL_BYTES as usize);
        self.bytes.drain(..beyond);
    }
}

fn read_part(file: &mut File, bytes: usize, stored: &mut Stored, tail: &mut Tail) -> Result<Bytes> {
    let mut part = Vec::new();
    file.take(bytes as u64).read_to_end(&mut part)?;
    stored.add(&part);
    tail.add(&part);
    Ok(part.into())
}

fn client(definition: &Definition, address: &Address) -> StoreResult<Arc<dyn ObjectStore>> {
    let retry = RetryConfig {
        backoff: BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2.0 },
        max_retries: definition.count("retries", RETRIES),
        retry_timeout: definition.time("retry_timeout", RETRY_TIMEOUT),
    };
    let mut options = ClientOptions::new()
        .with_timeout(definition.time("timeout", TIMEOUT))
        .with_connect_timeout(definition.time("connect_timeout", CONNECT_TIMEOUT))
        .with_allow_http(definition.flag("allow_http"));
    if let Some(pem) = definition.text("ca_certificate") {
        for certificate in Certificate::from_pem_bundle(pem.as_bytes())? {
            options = options.with_root_certificate(certificate);
        }
    }
    match address.kind {
        Kind::S3 => s3(definition, address, retry, options),
        Kind::Gcs => gcs(definition, address, retry, options),
        Kind::Azure => azure(definition, address, retry, options),
        Kind::File => {
            Err(object_store::Error::NotImplemented { operation: "open".to_owned(), implementer: "directory".to_owned() })
        }
    }
}

fn s3(
    definition: &Definition,
    address: &Address,
    retry: RetryConfig,
    options: ClientOptions,
) -> StoreResult<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&address.bucket)
        .with_region(definition.text("region").unwrap_or("us-east-1"))
        .with_retry(retry)
        .with_client_options(options)
        .with_skip_signature(definition.flag("anonymous"))
        .with_unsigned_payload(definition.flag("unsigned_payload"))
        .with_virtual_hosted_style_request(definition.flag("virtual_hosted_style"));
    if let Some(endpoint) = definition.text("endpoint") {
        builder = builder.with_endpoint(endpoint).with_allow_http(definition.flag("allow_http"));
    }
    if let (Some(id), Some(key)) = (definition.text("access_key_id"), definition.text("secret_access_key")) {
        builder = builder.with_access_key_id(id).with_secret_access_key(key);
    }
    if let Some(token) = definition.text("session_token") {
        builder = builder.with_token(token);
    }
    for (option, key) in [("server_side_encryption", "server_side_encryption"), ("kms_key_id", "sse_kms_key_id")] {
        if let Some(value) = definition.text(option) {
            builder = builder.with_config(key.parse()?, value);
        }
    }
    Ok(Arc::new(builder.build()?))
}

fn gcs(
    definition: &Definition,
    address: &Address,
    retry: RetryConfig,
    options: ClientOptions,
) -> StoreResult<Arc<dyn ObjectStore>> {
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&address.bucket)
        .with_retry(retry)
        .with_client_options(options)
        .with_skip_signature(definition.flag("anonymous"));
    if let Some(key) = definition.text("service_account_key") {
        builder = builder.with_service_account_key(key);
    }
    if let Some(endpoint) = definition.text("endpoint") {
        builder = builder.with_config("google_base_url".parse()?, endpoint);
    }
    Ok(Arc::new(builder.build()?))
}

fn azure(
    definition: &Definition,
    address: &Address,
    retry: RetryConfig,
    options: ClientOptions,
) -> StoreResult<Arc<dyn ObjectStore>> {
    let mut builder = MicrosoftAzureBuilder::new()
        .with_container_name(&address.bucket)
        .with_retry(retry)
        .with_client_options(options)
        .with_skip_signature(definition.flag("anonymous"));
    let texts = [
        ("account_name", "account_name"),
        ("account_key", "account_key"),
        ("sas_token", "sas_token"),
        ("tenant_id", "tenant_id"),
        ("client_id", "client_id"),
        ("client_secret", "client_secret"),
        ("endpoint", "azure_endpoint"),
    ];
    for (option, key) in texts {
        if let Some(value) = definition.text(option) {
            builder = builder.with_config(key.parse()?, value);
        }
    }
    if definition.text("endpoint").is_some() {
        builder = builder.with_allow_http(definition.flag("allow_http"));
    }
    Ok(Arc::new(builder.build()?))
}
