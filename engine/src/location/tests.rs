//! Tests of storages: directories, a store in memory, and servers that fail, stall and lie.

mod liars;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path as StorePath;
use object_store::{ObjectStoreExt, PutPayload};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;

fn options(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

fn kind_of<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// Bytes that differ from place to place.
fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn file_with(directory: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = directory.path().join("source");
    fs::write(&path, bytes).unwrap();
    path
}

fn directory_location(directory: &TempDir) -> Location {
    Location::open(&Definition::local(), &directory.path().join("objects")).unwrap()
}

fn memory_location(store: &Arc<InMemory>, prefix: &str) -> Location {
    let definition = Definition::new("memory", "s3://bucket", Map::new()).unwrap();
    Location::at(definition, Place::Remote(Remote::over(store.clone(), prefix.to_owned(), Duration::from_secs(20), false)))
}

#[test]
fn a_template_is_relative_and_has_its_places_in_order() {
    for good in ["{namespace}/{table}", "a/{namespace}.{table}", "{table}", "kalam"] {
        Template::parse(good, Owner::Shared).unwrap();
    }
    for good in ["{namespace}/{table}/{shard}/{user}", "{user}", "x/{table}-{user}"] {
        Template::parse(good, Owner::User).unwrap();
    }
    let long = "x".repeat(201);
    let bad = [
        "",
        "/a",
        "../{table}",
        "a/../b",
        "a//b",
        "{table}/",
        ".",
        "{table}/{namespace}",
        "{table}/{table}",
        "{table}/{user}",
        "{shard}",
        "{users}",
        "{table",
        "a b",
        "a\\b",
        "a\0",
        "ä",
        &long,
    ];
    for bad in bad {
        assert_eq!(kind_of(Template::parse(bad, Owner::Shared)), ErrorKind::InvalidInput, "{bad}");
    }
    for bad in ["{namespace}/{table}", "{user}/{table}", "{user}/..", "{user}/{user}"] {
        assert_eq!(kind_of(Template::parse(bad, Owner::User)), ErrorKind::InvalidInput, "{bad}");
    }
}

#[test]
fn names_in_paths_are_told_apart_and_stay_inside() {
    let template = Template::parse("{namespace}/{table}/{user}", Owner::User).unwrap();
    let path = |user| template.render(&Names { namespace: "app", table: "t/../x", user: Some(user) }).unwrap();
    assert_eq!(path("alice"), "app/t%2F..%2Fx/alice");
    assert_eq!(path(".."), "app/t%2F..%2Fx/%2E%2E".replace("%2E%2E", "%2E."));
    assert_eq!(path("a/b"), "app/t%2F..%2Fx/a%2Fb");
    assert_eq!(path("{table}"), "app/t%2F..%2Fx/%7Btable%7D");
    assert_eq!(path(""), "app/t%2F..%2Fx/%");
    assert_ne!(path("Alice"), path("alice"));
    assert_ne!(path("%"), path(""));
    let none = template.render(&Names { namespace: "app", table: "t", user: None });
    assert_eq!(kind_of(none), ErrorKind::InvalidInput);
}

proptest! {
    #[test]
    fn every_name_makes_an_allowed_path_of_one_part(user in "\\PC{0,300}|[./%~{}]{0,9}", table in "\\PC{1,63}") {
        let template = Template::parse("{namespace}/{table}/{shard}/{user}", Owner::User).unwrap();
        let path = template.render(&Names { namespace: "app", table: &table, user: Some(&user) }).unwrap();
        prop_assert!(check_object(&path).is_ok(), "{path}");
        prop_assert_eq!(path.split('/').count(), 4);
        prop_assert!(path.len() < 400);
    }

    #[test]
    fn different_names_make_different_paths(one in "\\PC{0,200}", other in "\\PC{0,200}") {
        prop_assert_eq!(one == other, encode_name(&one) == encode_name(&other));
    }
}

#[test]
fn a_definition_is_refused_for_what_is_wrong_with_it() {
    let refused = |name: &str, url: &str, given: Value| {
        let error = Definition::new(name, url, options(given)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        format!("{error} {}", error.hint().unwrap_or_default())
    };
    for name in ["", "A", "a b", "a/b", &"x".repeat(64)] {
        assert!(refused(name, "s3://bucket", json!({})).contains("name"), "{name}");
    }
    let urls = [
        "",
        "bucket",
        "ftp://bucket/x",
        "s3://",
        "s3://b",
        "s3://key:secret@bucket/x",
        "s3://bucket/../x",
        "s3://bucket//x",
        "file://relative",
        "file:///",
        "file:///a/../b",
        "file:///a//b",
        "file:///a%2e%2e/b",
        "local:",
        "s3://bucket/a?x=1",
    ];
    for url in urls {
        let text = refused("a", url, json!({}));
        assert!(text.contains("URL") && !text.contains("secret"), "{url}: {text}");
    }
    assert!(refused("a", "s3://bucket", json!({ "regoin": "x" })).contains("region"));
    assert!(refused("a", "file:///x", json!({ "region": "x" })).contains("shared_template"));
    assert!(refused("a", "s3://bucket", json!({ "timeout": "soon" })).contains("30 s"));
    assert!(refused("a", "s3://bucket", json!({ "timeout": 0 })).contains("timeout"));
    assert!(refused("a", "s3://bucket", json!({ "retries": 21 })).contains("20"));
    assert!(refused("a", "s3://bucket", json!({ "allow_http": "maybe" })).contains("true"));
    assert!(refused("a", "s3://bucket", json!({ "access_key_id": "x" })).contains("together"));
    assert!(refused("a", "s3://bucket", json!({ "endpoint": "http://x" })).contains("allow_http"));
    assert!(refused("a", "s3://bucket", json!({ "user_template": "{namespace}/{table}" })).contains("{user}"));
    assert!(refused("a", "az://container", json!({})).contains("account_name"));
    assert!(refused("local", "s3://bucket", json!({})).contains("always"));
}

#[test]
fn secrets_are_told_apart_from_other_options() {
    let given = json!({ "region": "eu", "access_key_id": "id", "secret_access_key": "hush", "timeout": "500 ms" });
    let definition = Definition::new("a", "s3://bucket/x/", options(given)).unwrap();
    assert_eq!(definition.address().unwrap(), Address { kind: Kind::S3, bucket: "bucket".into(), path: "x".into() });
    assert!(!format!("{definition:?}").contains("hush"));
    assert!(!definition.public_options().contains_key("secret_access_key"));
    assert_eq!(definition.secret_options().keys().collect::<Vec<_>>(), ["secret_access_key"]);
    assert_eq!(definition.time("timeout", Duration::ZERO), Duration::from_millis(500));
    assert_eq!(Definition::from_value("a", &definition.to_value()).unwrap(), definition);
    assert_eq!(kind_of(Definition::from_value("b", &definition.to_value())), ErrorKind::Corrupt);
    assert_eq!(kind_of(Definition::from_value("a", &json!({}))), ErrorKind::Corrupt);
}

#[test]
fn credentials_go_to_no_other_address_than_they_were_given_for() {
    let definition = |url: &str, endpoint: &str, secret: &str| {
        let given = json!({ "endpoint": endpoint, "access_key_id": "id", "secret_access_key": secret });
        Definition::new("a", url, options(given)).unwrap()
    };
    let before = definition("s3://bucket", "https://one", "hush");
    assert!(!definition("s3://bucket", "https://one", "hush").redirects_secrets_of(&before));
    assert!(definition("s3://bucket", "https://two", "hush").redirects_secrets_of(&before));
    assert!(definition("s3://other", "https://one", "hush").redirects_secrets_of(&before));
    assert!(!definition("s3://other", "https://two", "new").redirects_secrets_of(&before));
}

/// What every storage does, whatever is behind it.
fn keeps_objects(location: &Location, directory: &TempDir) {
    let bytes = noise(100_000);
    let source = file_with(directory, &bytes);
    let stored = location.put(&source, "app/t/one.parquet", &WaitForever).unwrap();
    assert_eq!(stored, Stored { bytes: 100_000, crc32c: crc32c::crc32c(&bytes) });
    location.put(&source, "app/t2/two.parquet", &WaitForever).unwrap();
    location.put(&source, "app/t/three.parquet", &WaitForever).unwrap();

    let reader = location.source("app/t/one.parquet", 100_000).unwrap();
    assert_eq!(reader.read(0..100_000).unwrap(), bytes);
    let ranges = [5..5, 10..20, 99_990..100_000];
    let read = reader.read_ranges(&ranges).unwrap();
    for (range, read) in ranges.into_iter().zip(read) {
        assert_eq!(read, bytes[range.start as usize..range.end as usize]);
    }
    assert_eq!(kind_of(reader.read(99_990..100_001)), ErrorKind::Corrupt);

    location.verify("app/t/one.parquet", &stored, &WaitForever).unwrap();
    let other = Stored { crc32c: !stored.crc32c, ..stored };
    assert_eq!(kind_of(location.verify("app/t/one.parquet", &other, &WaitForever)), ErrorKind::Corrupt);
    let wrong_size = location.source("app/t/one.parquet", 99_999).and_then(|reader| reader.read(0..10));
    assert_eq!(kind_of(wrong_size), ErrorKind::Corrupt);
    let missing = location.source("app/t/none.parquet", 10).and_then(|reader| reader.read(0..10));
    assert_eq!(kind_of(missing), ErrorKind::StorageMissing);
    assert_eq!(location.size("app/t/one.parquet", &WaitForever).unwrap(), 100_000);
    assert_eq!(kind_of(location.size("app/none", &WaitForever)), ErrorKind::StorageMissing);

    let list = |below, after, limit| {
        let found = location.list(below, after, limit, &WaitForever).unwrap();
        assert!(found.iter().all(|object| object.bytes == 100_000));
        found.into_iter().map(|object| object.path).collect::<Vec<_>>()
    };
    let all = ["app/t/one.parquet", "app/t/three.parquet", "app/t2/two.parquet"];
    assert_eq!(list("", None, 10), all);
    assert_eq!(list("app/t", None, 10), all[..2]);
    assert_eq!(list("app/t/", Some(all[0]), 10), all[1..2]);
    assert_eq!(list("", None, 2), all[..2]);
    assert_eq!(list("", Some(all[1]), 2), all[2..]);
    assert_eq!(list("ap", None, 10), [""; 0]);

    for _ in 0..2 {
        location.delete("app/t/one.parquet", &WaitForever).unwrap();
    }
    assert_eq!(list("app/t", None, 10), all[1..2]);
    for bad in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a b"] {
        assert_eq!(kind_of(location.put(&source, bad, &WaitForever)), ErrorKind::InvalidInput, "{bad}");
        assert_eq!(kind_of(location.delete(bad, &WaitForever)), ErrorKind::InvalidInput, "{bad}");
        assert_eq!(kind_of(location.source(bad, 1)), ErrorKind::InvalidInput, "{bad}");
    }
    let report = location.check(true, directory.path(), &WaitForever).unwrap();
    assert_eq!(report.health, Health::Healthy, "{report:?}");
    assert_eq!(report.steps.iter().map(|step| step.name).collect::<Vec<_>>(), ["put", "list", "get", "delete"]);
    assert_eq!(list("kalam-check", None, 10), [""; 0]);
}

#[test]
fn a_directory_keeps_objects() {
    let directory = TempDir::new().unwrap();
    keeps_objects(&directory_location(&directory), &directory);
}

#[test]
fn an_object_store_keeps_objects() {
    let (directory, store) = (TempDir::new().unwrap(), Arc::new(InMemory::new()));
    keeps_objects(&memory_location(&store, "clusters/one"), &directory);
    keeps_objects(&memory_location(&Arc::new(InMemory::new()), ""), &directory);
}

#[test]
fn prefixes_of_an_object_store_are_apart() {
    let (directory, store) = (TempDir::new().unwrap(), Arc::new(InMemory::new()));
    let source = file_with(&directory, b"x");
    memory_location(&store, "one").put(&source, "a", &WaitForever).unwrap();
    memory_location(&store, "onetwo").put(&source, "b", &WaitForever).unwrap();
    let found = memory_location(&store, "one").list("", None, 10, &WaitForever).unwrap();
    assert_eq!(found.into_iter().map(|object| object.path).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_long_file_is_uploaded_in_parts() {
    let (directory, store) = (TempDir::new().unwrap(), Arc::new(InMemory::new()));
    let bytes = noise((40 << 20) + 17);
    let source = file_with(&directory, &bytes);
    let location = memory_location(&store, "p");
    let stored = location.put(&source, "long", &WaitForever).unwrap();
    assert_eq!(stored.crc32c, crc32c::crc32c(&bytes));
    location.verify("long", &stored, &WaitForever).unwrap();
    assert_eq!(location.source("long", stored.bytes).unwrap().read(0..stored.bytes).unwrap(), bytes);
}

#[test]
fn a_changed_object_is_found_out() {
    let (directory, store) = (TempDir::new().unwrap(), Arc::new(InMemory::new()));
    let location = memory_location(&store, "p");
    let stored = location.put(&file_with(&directory, &noise(1000)), "o", &WaitForever).unwrap();
    let reader = location.source("o", 1000).unwrap();
    let put = |bytes: Vec<u8>| {
        let store = store.clone();
        let put = async move { store.put(&StorePath::from("p/o"), PutPayload::from(bytes)).await };
        io::begin(Duration::from_secs(5), put).unwrap().finish(&WaitForever).unwrap().unwrap();
    };
    put(noise(999));
    assert_eq!(kind_of(reader.read(0..10)), ErrorKind::Corrupt);
    put(vec![0; 1000]);
    assert_eq!(kind_of(location.verify("o", &stored, &WaitForever)), ErrorKind::Corrupt);
}

#[test]
fn a_directory_follows_no_links_and_overwrites_nothing() {
    let (directory, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let location = directory_location(&directory);
    let source = file_with(&directory, b"bytes");
    location.put(&source, "a/one", &WaitForever).unwrap();
    assert_eq!(kind_of(location.put(&source, "a/one", &WaitForever)), ErrorKind::InvalidInput);
    let objects = directory.path().join("objects");
    let mode = |path: &str| fs::metadata(objects.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("a"), mode("a/one")), (0o700, 0o700, 0o600));

    fs::write(elsewhere.path().join("secret"), b"bytes").unwrap();
    symlink(elsewhere.path(), objects.join("link")).unwrap();
    symlink(elsewhere.path().join("secret"), objects.join("a/file")).unwrap();
    assert_eq!(kind_of(location.put(&source, "link/two", &WaitForever)), ErrorKind::StorageMissing);
    assert_eq!(kind_of(location.source("link/secret", 5)), ErrorKind::StorageMissing);
    assert_eq!(kind_of(location.delete("link/secret", &WaitForever)), ErrorKind::StorageMissing);
    assert_eq!(kind_of(location.source("a/file", 5)), ErrorKind::StorageMissing);
    let found = location.list("", None, 10, &WaitForever).unwrap();
    assert_eq!(found.into_iter().map(|object| object.path).collect::<Vec<_>>(), ["a/one"]);
    assert!(elsewhere.path().join("secret").exists());
}

#[test]
fn a_directory_that_users_name_is_checked() {
    let base = TempDir::new().unwrap();
    let root = base.path().canonicalize().unwrap();
    let data = root.join("data");
    fs::create_dir(&data).unwrap();
    let prepare = |path: &std::path::Path| prepare_directory("a", path, &data);
    let made = prepare(&root.join("x/y")).unwrap();
    assert_eq!(made, root.join("x/y"));
    assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(prepare(&made).unwrap(), made);
    assert_eq!(fs::read_dir(&made).unwrap().count(), 0);

    symlink(&data, root.join("to_data")).unwrap();
    symlink(&made, root.join("to_made")).unwrap();
    assert_eq!(prepare(&root.join("to_made")).unwrap(), made);
    for bad in [root.clone(), data.clone(), data.join("new"), root.join("to_data"), root.join("to_data/new")] {
        assert_eq!(kind_of(prepare(&bad)), ErrorKind::InvalidInput, "{}", bad.display());
    }
    assert!(!data.join("new").exists());
    fs::set_permissions(&made, fs::Permissions::from_mode(0o770)).unwrap();
    assert_eq!(kind_of(prepare(&made)), ErrorKind::InvalidInput);
    fs::write(root.join("file"), b"").unwrap();
    assert_ne!(kind_of(prepare(&root.join("file"))), ErrorKind::Internal);

    let definition = Definition::new("a", &format!("file://{}", root.join("to_made").display()), Map::new()).unwrap();
    assert_eq!(kind_of(Location::open(&definition, &data)), ErrorKind::StorageMissing);
}
