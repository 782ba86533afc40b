//! The families of the real process, and values that the kernel does not provide.

use super::*;
use crate::metrics::Registry;
use crate::metrics::exposition::{FamilyFilter, Format};

#[test]
fn every_process_family_is_on_the_page() {
    let registry = Registry::default();
    registry.add_or_log(ProcessFamilies::new());
    let text = String::from_utf8(registry.render(Format::Text, &FamilyFilter::all()).to_vec()).unwrap();
    for family in c::ALL.iter().filter(|family| family.name.starts_with("process_")) {
        let sample = text.lines().find_map(|line| line.strip_prefix(family.name)?.strip_prefix(' '));
        let value: f64 = sample.unwrap_or_else(|| panic!("no {} in\n{text}", family.name)).parse().unwrap();
        assert!(value.is_finite() && value >= 0.0, "{} {value}", family.name);
    }
}

#[test]
fn a_value_that_cannot_be_read_is_left_out_and_logged_once() {
    let collector = ProcessFamilies::new();
    assert_eq!(collector.known::<u64, _>(Err("permission denied")), None);
    assert!(collector.complained.load(Ordering::Relaxed));
    assert_eq!(collector.known::<_, &str>(Ok(3)), Some(3));
}
