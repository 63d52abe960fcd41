//! Servers that speak HTTP and behave badly.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::*;

const SECRET: &str = "hush-hush-0123456789";

/// Answers each request with a text, or never.
struct Server {
    address: String,
    requests: Arc<AtomicUsize>,
}

impl Server {
    /// `answer` gets the request's first line.
    fn start(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (requests, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
        let counted = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, counted) = (answer.clone(), counted.clone());
                thread::spawn(move || serve(stream.unwrap(), &*answer, &counted));
            }
        });
        Server { address, requests }
    }

    fn location(&self, more: Value) -> Location {
        location_at(&self.address, more)
    }
}

fn serve(mut stream: TcpStream, answer: &(dyn Fn(&str) -> Option<String> + Send + Sync), counted: &AtomicUsize) {
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while lines.read_line(&mut head).is_ok_and(|read| read > 2) {}
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    let mut body = vec![0; length.and_then(|length| length.trim().parse().ok()).unwrap_or(0)];
    if lines.read_exact(&mut body).is_err() {
        return;
    }
    counted.fetch_add(1, Ordering::SeqCst);
    match answer(head.lines().next().unwrap_or_default()) {
        Some(text) => drop(stream.write_all(text.as_bytes())),
        // Until the other side hangs up.
        None => drop(stream.read_to_end(&mut Vec::new())),
    }
}

fn location_at(address: &str, more: Value) -> Location {
    let mut given = options(json!({
        "endpoint": format!("http://{address}"), "allow_http": true, "access_key_id": "key", "secret_access_key": SECRET,
        "retries": 1, "timeout": "300 ms", "retry_timeout": "300 ms",
    }));
    given.extend(options(more));
    Location::open(&Definition::new("archive", "s3://bucket/p", given).unwrap(), std::path::Path::new("/nowhere")).unwrap()
}

fn answer(status: &str, headers: &str, body: &str) -> Option<String> {
    let length = body.len();
    Some(format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"))
}

const DATED: &str = "Last-Modified: Fri, 20 Nov 2026 20:00:00 GMT\r\nETag: \"x\"\r\n";

fn read_error(location: &Location) -> Error {
    let error = location.source("o", 1000).unwrap().read(0..10).unwrap_err();
    let text = format!("{error} {}", error.hint().unwrap_or_default());
    assert!(text.contains("archive") && text.contains("read") && text.contains("\"o\""), "{text}");
    assert!(!text.contains(SECRET), "{text}");
    error
}

#[test]
fn answers_that_say_no_are_told_precisely_and_without_secrets() {
    let cases = [
        ("404 Not Found", ErrorKind::StorageMissing),
        ("403 Forbidden", ErrorKind::StorageMissing),
        ("401 Unauthorized", ErrorKind::StorageMissing),
        ("500 Internal Server Error", ErrorKind::Io),
        ("503 Slow Down", ErrorKind::Io),
        ("301 Moved Permanently", ErrorKind::Io),
    ];
    for (status, kind) in cases {
        let server = Server::start(move |_| answer(status, "", &format!("<Error>{SECRET} http://x/y?sig={SECRET}</Error>")));
        let error = read_error(&server.location(json!({})));
        assert_eq!(error.kind(), kind, "{status}: {error}");
        assert!(server.requests.load(Ordering::SeqCst) <= 2, "{status}");
    }
}

#[test]
fn answers_that_lie_are_found_out() {
    let ten = "0123456789";
    let cases: Vec<(&str, Option<String>, ErrorKind)> = vec![
        (
            "another size",
            answer("206 Partial Content", &format!("{DATED}Content-Range: bytes 0-9/999\r\n"), ten),
            ErrorKind::Corrupt,
        ),
        ("no range", answer("200 OK", DATED, ten), ErrorKind::Io),
        ("garbage", answer("200 OK", "", "<html>gateway</html>"), ErrorKind::Io),
        (
            "another range",
            answer("206 Partial Content", &format!("{DATED}Content-Range: bytes 5-9/1000\r\n"), "56789"),
            ErrorKind::Io,
        ),
        (
            "too few bytes",
            answer("206 Partial Content", &format!("{DATED}Content-Range: bytes 0-9/1000\r\n"), "0123"),
            ErrorKind::Corrupt,
        ),
        ("no HTTP", Some("SSH-2.0-OpenSSH\r\n".to_owned()), ErrorKind::Io),
        ("nothing", Some(String::new()), ErrorKind::Io),
    ];
    for (case, text, kind) in cases {
        let server = Server::start(move |_| text.clone());
        let error = read_error(&server.location(json!({})));
        assert_eq!(error.kind(), kind, "{case}: {error}");
    }
}

#[test]
fn a_body_that_breaks_off_is_an_error() {
    let headers = format!("Content-Length: 10\r\n{DATED}Content-Range: bytes 0-9/1000\r\n");
    let server = Server::start(move |_| Some(format!("HTTP/1.1 206 Partial Content\r\nConnection: close\r\n{headers}\r\n0123")));
    assert_eq!(read_error(&server.location(json!({}))).kind(), ErrorKind::Io);
}

#[test]
fn a_store_that_is_not_there_or_silent_is_an_error_in_bounded_time() {
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    assert_eq!(read_error(&location_at(&nobody, json!({}))).kind(), ErrorKind::Io);
    let silent = Server::start(|_| None);
    assert_eq!(read_error(&silent.location(json!({}))).kind(), ErrorKind::Io);
}

#[test]
fn an_upload_that_is_acknowledged_but_not_kept_is_found_out() {
    let directory = TempDir::new().unwrap();
    let source = file_with(&directory, &noise(1000));
    let forgets = Server::start(|request| match request.starts_with("PUT") {
        true => answer("200 OK", "ETag: \"x\"\r\n", ""),
        false => answer("404 Not Found", "", ""),
    });
    assert_eq!(kind_of(forgets.location(json!({})).put(&source, "o", &WaitForever)), ErrorKind::StorageMissing);
    let mangles = Server::start(|request| match request.starts_with("PUT") {
        true => answer("200 OK", "ETag: \"x\"\r\n", ""),
        false => answer("206 Partial Content", &format!("{DATED}Content-Range: bytes 0-999/1000\r\n"), &"x".repeat(1000)),
    });
    for verify in [false, true] {
        let location = mangles.location(json!({ "verify_uploads": verify }));
        assert_eq!(kind_of(location.put(&source, "o", &WaitForever)), ErrorKind::Corrupt);
    }
}

#[test]
fn a_list_that_lies_is_an_error_or_left_out() {
    let garbage = Server::start(|_| answer("200 OK", "", "not xml"));
    assert_eq!(kind_of(garbage.location(json!({})).list("", None, 10, &WaitForever)), ErrorKind::Io);
    let entry = |key: &str| {
        format!(
            "<Contents><Key>{key}</Key><LastModified>2026-11-20T20:00:00Z</LastModified><ETag>x</ETag><Size>5</Size></Contents>"
        )
    };
    let body = format!("<ListBucketResult>{}{}</ListBucketResult>", entry("other/a"), entry("p/b"));
    let foreign = Server::start(move |_| answer("200 OK", "", &body));
    let found = foreign.location(json!({})).list("", None, 10, &WaitForever).unwrap();
    assert_eq!(found.into_iter().map(|object| object.path).collect::<Vec<_>>(), ["b"]);
}

struct Impatient;

impl Wait for Impatient {
    fn pause(&self) -> Result<()> {
        Err(Error::new(ErrorKind::Cancelled, "canceling statement due to user request"))
    }
}

const PATIENT: fn() -> Value = || json!({ "timeout": "10 min", "retry_timeout": "10 min" });

#[test]
fn a_wait_for_a_silent_store_ends_when_its_waiter_wants() {
    let silent = Server::start(|_| None);
    let location = silent.location(PATIENT());
    assert_eq!(kind_of(location.delete("o", &Impatient)), ErrorKind::Cancelled);
    assert_eq!(kind_of(location.check(true, TempDir::new().unwrap().path(), &Impatient)), ErrorKind::Cancelled);
}

#[test]
fn closing_a_storage_ends_the_waits_of_other_threads() {
    let asked = Arc::new(AtomicBool::new(false));
    let heard = asked.clone();
    let silent = Server::start(move |_| {
        heard.store(true, Ordering::SeqCst);
        None
    });
    let location = silent.location(PATIENT());
    let reader = location.source("o", 1000).unwrap();
    let waiting = thread::spawn(move || reader.read(0..10).unwrap_err().kind());
    while !asked.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    location.close();
    assert_eq!(waiting.join().unwrap(), ErrorKind::Unavailable);
}

#[test]
fn a_silent_store_keeps_no_other_store_waiting() {
    let silent = Server::start(|_| None);
    let reader = silent.location(PATIENT()).source("o", 1000).unwrap();
    let stuck = reader.location.clone();
    let waiting = thread::spawn(move || reader.read(0..10).unwrap_err().kind());
    let store = Arc::new(InMemory::new());
    let directory = TempDir::new().unwrap();
    keeps_objects(&memory_location(&store, "p"), &directory);
    stuck.close();
    assert_eq!(waiting.join().unwrap(), ErrorKind::Unavailable);
}

#[test]
fn a_check_tells_healthy_from_degraded_and_unreachable() {
    let directory = TempDir::new().unwrap();
    let dead = Server::start(|_| answer("500 Internal Server Error", "", ""));
    let report = dead.location(json!({ "retries": 0 })).check(true, directory.path(), &WaitForever).unwrap();
    assert_eq!(report.health, Health::Unreachable, "{report:?}");
    assert!(report.steps.iter().all(|step| step.failure.is_some()));
    let read_only = Server::start(|request| match request.starts_with("GET") {
        true => answer("200 OK", "", "<ListBucketResult></ListBucketResult>"),
        false => answer("403 Forbidden", "", ""),
    });
    let location = read_only.location(json!({}));
    assert_eq!(location.check(true, directory.path(), &WaitForever).unwrap().health, Health::Degraded);
    assert_eq!(location.check(false, directory.path(), &WaitForever).unwrap().health, Health::Healthy);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
