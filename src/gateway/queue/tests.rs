use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::*;

type Pages = Queue<u8, &'static str, usize>;

/// A scrape that takes its turn, counts that it was begun, and ends when it is let go.
fn scrape(begun: &Arc<AtomicUsize>, go: &Arc<Notify>) -> impl FnOnce(Arc<Semaphore>) -> BoxFuture<'static, usize> {
    let (begun, go) = (Arc::clone(begun), Arc::clone(go));
    move |turn| {
        async move {
            let _turn = turn.acquire_owned().await.unwrap();
            let number = begun.fetch_add(1, Ordering::SeqCst);
            go.notified().await;
            number
        }
        .boxed()
    }
}

/// Lets everything run that can.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_wants_the_same_at_the_same_time_gets_the_same() {
    let (queue, begun, go) = (Pages::new(), Arc::default(), Arc::default());
    let first = tokio::spawn(queue.join(1, &"text", scrape(&begun, &go)).unwrap());
    let second = tokio::spawn(queue.join(1, &"text", scrape(&begun, &go)).unwrap());
    settle().await;
    go.notify_one();
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (0, 0));
    // It is over: who comes now gets a new one.
    assert!(queue.is_empty());
    let third = tokio::spawn(queue.join(1, &"text", scrape(&begun, &go)).unwrap());
    settle().await;
    go.notify_one();
    assert_eq!(third.await.unwrap(), 1);
    assert!(queue.is_empty());
}

#[tokio::test]
async fn different_things_of_one_peer_wait_for_each_other_and_those_of_two_do_not() {
    let (queue, begun, go) = (Pages::new(), Arc::<AtomicUsize>::default(), Arc::default());
    let text = tokio::spawn(queue.join(1, &"text", scrape(&begun, &go)).unwrap());
    let protobuf = tokio::spawn(queue.join(1, &"protobuf", scrape(&begun, &go)).unwrap());
    settle().await;
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    let other = tokio::spawn(queue.join(2, &"text", scrape(&begun, &go)).unwrap());
    settle().await;
    assert_eq!(begun.load(Ordering::SeqCst), 2);
    for _ in 0..3 {
        go.notify_one();
        settle().await;
    }
    tokio::time::timeout(Duration::from_secs(10), async { (text.await, protobuf.await, other.await) })
        .await
        .unwrap()
        .0
        .unwrap();
    assert!(queue.is_empty());
}

#[tokio::test]
async fn a_scrape_ends_when_everybody_who_waited_is_gone() {
    let (queue, begun, go) = (Pages::new(), Arc::<AtomicUsize>::default(), Arc::default());
    let first = tokio::spawn(queue.join(1, &"text", scrape(&begun, &go)).unwrap());
    let second = tokio::spawn(queue.join(1, &"text", scrape(&begun, &go)).unwrap());
    settle().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert!(!queue.is_empty(), "one still waits");
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    assert!(queue.is_empty());
    // And its turn is given back.
    let third = tokio::spawn(queue.join(1, &"text", scrape(&begun, &go)).unwrap());
    settle().await;
    go.notify_one();
    assert_eq!(third.await.unwrap(), 1);
}

#[tokio::test]
async fn one_peer_has_so_many_scrapes_and_no_more() {
    let queue: Queue<u8, usize, ()> = Queue::new();
    let never = |_| std::future::pending().boxed();
    let waiting: Vec<_> = (0..MAX_OF_ONE).map(|want| queue.join(1, &want, never).unwrap()).collect();
    assert!(queue.join(1, &MAX_OF_ONE, never).is_err());
    assert!(queue.join(1, &0, never).is_ok(), "who joins takes no place");
    assert!(queue.join(2, &0, never).is_ok());
    drop(waiting);
    assert!(queue.is_empty());
}
