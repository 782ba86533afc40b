//! What every backend promises. The tests of each backend run this against a real one.
//!
//! The store must be empty at the start and opened with the default limits.

use bytes::Bytes;
use peerscope::storage::{Config, Storage, StorageError};

/// The promises about data.
pub(crate) async fn storage_contract(storage: Storage) {
    a_key_goes_from_absent_to_present_and_back(&storage).await;
    keys_and_values_are_bytes(&storage).await;
    limits_are_exact(&storage).await;
    writers_of_different_keys_do_not_disturb_each_other(&storage).await;
    the_last_acknowledged_write_of_a_key_wins(&storage).await;
}

async fn a_key_goes_from_absent_to_present_and_back(storage: &Storage) {
    let key = Bytes::from_static(b"contract/one");
    assert_eq!(storage.get(&key).await.unwrap(), None, "the store starts empty");
    assert!(!storage.delete(key.clone()).await.unwrap(), "there is nothing to delete yet");

    storage.put(key.clone(), Bytes::from_static(b"first")).await.unwrap();
    assert_eq!(storage.get(&key).await.unwrap().as_deref(), Some(&b"first"[..]));
    storage.put(key.clone(), Bytes::from_static(b"second, and longer")).await.unwrap();
    assert_eq!(storage.get(&key).await.unwrap().as_deref(), Some(&b"second, and longer"[..]));
    storage.put(key.clone(), Bytes::new()).await.unwrap();
    assert_eq!(storage.get(&key).await.unwrap(), Some(Bytes::new()), "an empty value is a value");

    assert!(storage.delete(key.clone()).await.unwrap());
    assert_eq!(storage.get(&key).await.unwrap(), None);
    assert!(!storage.delete(key.clone()).await.unwrap(), "it is gone already");
}

async fn keys_and_values_are_bytes(storage: &Storage) {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let keys: [&[u8]; 7] =
        [b"\0", b"\0\0", b"\xff\xfe not UTF-8", b"a\r\nb", b"{tag}x", b"with space", all_bytes.as_slice()];
    for (index, key) in keys.iter().enumerate() {
        let mut value = all_bytes.clone();
        value.push(u8::try_from(index).unwrap());
        storage.put(Bytes::copy_from_slice(key), value.into()).await.unwrap();
    }
    for (index, key) in keys.iter().enumerate() {
        let value = storage.get(&Bytes::copy_from_slice(key)).await.unwrap().expect("the key was put");
        assert_eq!(value[..256], all_bytes[..], "{key:?}");
        assert_eq!(usize::from(value[256]), index, "{key:?} holds another key's value");
        assert!(storage.delete(Bytes::copy_from_slice(key)).await.unwrap(), "{key:?}");
    }
}

async fn limits_are_exact(storage: &Storage) {
    let Config { max_key_size, max_value_size, .. } = Config::default();
    let longest_key = Bytes::from(vec![b'k'; max_key_size]);
    let longest_value: Bytes = (0..max_value_size).map(|i| (i % 251) as u8).collect();
    storage.put(longest_key.clone(), longest_value.clone()).await.unwrap();
    assert!(storage.get(&longest_key).await.unwrap() == Some(longest_value), "the longest value came back changed");

    let long_key = Bytes::from(vec![b'k'; max_key_size + 1]);
    let is_key_too_large = |error: StorageError| matches!(error, StorageError::KeyTooLarge { len, max } if len == max_key_size + 1 && max == max_key_size);
    assert!(is_key_too_large(storage.put(long_key.clone(), Bytes::new()).await.unwrap_err()));
    assert!(is_key_too_large(storage.get(&long_key).await.unwrap_err()));
    assert!(is_key_too_large(storage.delete(long_key).await.unwrap_err()));

    let error = storage.put(longest_key.clone(), vec![0; max_value_size + 1].into()).await.unwrap_err();
    assert!(
        matches!(error, StorageError::ValueTooLarge { len, max } if len == max_value_size + 1 && max == max_value_size),
        "{error}"
    );
    let kept = storage.get(&longest_key).await.unwrap().expect("a refused put changes nothing");
    assert_eq!(kept.len(), max_value_size);

    assert!(matches!(storage.put(Bytes::new(), Bytes::new()).await, Err(StorageError::KeyEmpty)));
    assert!(matches!(storage.get(&Bytes::new()).await, Err(StorageError::KeyEmpty)));
    assert!(matches!(storage.delete(Bytes::new()).await, Err(StorageError::KeyEmpty)));
    assert!(storage.delete(longest_key).await.unwrap());
}

async fn writers_of_different_keys_do_not_disturb_each_other(storage: &Storage) {
    const WRITERS: usize = 48;
    const KEYS_EACH: usize = 10;
    let key = |writer: usize, i: usize| Bytes::from(format!("contract/writer-{writer}/{i}"));
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let storage = storage.clone();
        tasks.spawn(async move {
            for i in 0..KEYS_EACH {
                let value = Bytes::from(format!("{writer}:{i}"));
                storage.put(key(writer, i), value.clone()).await.unwrap();
                assert_eq!(storage.get(&key(writer, i)).await.unwrap(), Some(value), "a writer reads its own write");
                if i % 2 == 1 {
                    assert!(storage.delete(key(writer, i)).await.unwrap());
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for writer in 0..WRITERS {
        for i in 0..KEYS_EACH {
            let expected = (i % 2 == 0).then(|| Bytes::from(format!("{writer}:{i}")));
            assert_eq!(storage.get(&key(writer, i)).await.unwrap(), expected, "writer {writer}, key {i}");
        }
    }
}

async fn the_last_acknowledged_write_of_a_key_wins(storage: &Storage) {
    const WRITERS: usize = 16;
    const WRITES_EACH: usize = 20;
    let key = Bytes::from_static(b"contract/shared");
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (storage, key) = (storage.clone(), key.clone());
        tasks.spawn(async move {
            for i in 0..WRITES_EACH {
                storage.put(key.clone(), Bytes::from(format!("{writer}:{i}"))).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    // Each writer waits for one acknowledgement before its next write, so the final value is some writer's last
    // write. An earlier one would mean that an acknowledged write was undone.
    let last = storage.get(&key).await.unwrap().expect("the key was put");
    let last = String::from_utf8(last.to_vec()).unwrap();
    let (writer, i) = last.split_once(':').unwrap();
    assert!(writer.parse::<usize>().unwrap() < WRITERS, "{last}");
    assert_eq!(i.parse::<usize>().unwrap(), WRITES_EACH - 1, "{last} is not the last write of its writer");
    // And a single caller sees its writes in order.
    for i in 0..WRITES_EACH {
        let value = Bytes::from(i.to_string());
        storage.put(key.clone(), value.clone()).await.unwrap();
        assert_eq!(storage.get(&key).await.unwrap(), Some(value));
    }
    assert!(storage.delete(key).await.unwrap());
}

/// The promise about metrics: every operation increments its own series by exactly one, and no others.
#[cfg(feature = "metrics-prometheus")]
pub(crate) async fn metrics_contract(storage: Storage, registry: &peerscope::metrics::Registry) {
    use crate::support::metrics::{encode, value};

    let backend = storage.backend().to_string();
    // Counter, histogram count and number of errors of get, put and delete, then the operations in flight.
    let read = || {
        let text = encode(registry);
        let mut values = Vec::new();
        for operation in ["get", "put", "delete"] {
            let labels = [("operation", operation), ("backend", backend.as_str())];
            values.push(value(&text, "storage_operations_total", &labels));
            values.push(value(&text, "storage_operation_duration_seconds_count", &labels));
            let errors = [("operation", operation), ("backend", backend.as_str()), ("reason", "invalid")];
            values.push(value(&text, "storage_operation_errors_total", &errors));
        }
        values.push(value(&text, "storage_operations_in_flight", &[("backend", &backend)]));
        values
    };
    let moved = |before: &[f64]| read().iter().zip(before).map(|(after, before)| after - before).collect::<Vec<_>>();
    let key = Bytes::from_static(b"contract/measured");

    let before = read();
    storage.put(key.clone(), Bytes::from_static(b"v")).await.unwrap();
    assert_eq!(moved(&before), [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], "one put");

    let before = read();
    storage.get(&key).await.unwrap();
    assert_eq!(moved(&before), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], "one get");

    let before = read();
    storage.delete(key.clone()).await.unwrap();
    assert_eq!(moved(&before), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0], "one delete");

    let before = read();
    storage.get(&key).await.unwrap();
    storage.delete(key).await.unwrap();
    assert_eq!(moved(&before), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0], "an absent key is not an error");

    let before = read();
    storage.get(&Bytes::new()).await.unwrap_err();
    storage.put(Bytes::new(), Bytes::new()).await.unwrap_err();
    storage.delete(Bytes::new()).await.unwrap_err();
    assert_eq!(moved(&before), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0], "failed operations count too");
}
