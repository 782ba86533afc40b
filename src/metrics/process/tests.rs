//! The families against the real process, and a kernel that does not tell.

use prometheus_client::registry::Registry;

use super::*;

#[test]
fn every_family_of_the_process_is_there() {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessCollector::new()));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for family in c::ALL.iter().filter(|family| family.name.starts_with("process_")) {
        let sample = text.lines().find_map(|line| line.strip_prefix(family.name)?.strip_prefix(' '));
        let value: f64 = sample.unwrap_or_else(|| panic!("no {} in\n{text}", family.name)).parse().unwrap();
        assert!(value.is_finite() && value >= 0.0, "{} {value}", family.name);
    }
}

#[test]
fn what_cannot_be_read_is_left_out_and_complained_about_once() {
    let collector = ProcessCollector::new();
    assert_eq!(collector.known::<u64, _>(Err("permission denied")), None);
    assert!(collector.complained.load(Ordering::Relaxed));
    assert_eq!(collector.known::<_, &str>(Ok(3)), Some(3));
}
