use super::*;

#[test]
fn a_path_names_the_target_list_a_peer_or_an_exporter() {
    assert_eq!(route("/sd"), Some(Route::Discovery));
    assert_eq!(route("/peers/12D3/metrics"), Some(Route::Peer("12D3", None)));
    assert_eq!(route("/peers/12D3/exposed/node/metrics"), Some(Route::Peer("12D3", Some("node"))));
    let others = [
        "/",
        "/sd/",
        "/peers",
        "/peers/x",
        "/peers/x/",
        "/peers/x/metrics/",
        "/peers/x/y/metrics",
        "/peers//metrics/z",
    ];
    for path in others.iter().chain(&["/peers/x/exposed/metrics", "/peers/x/exposed/a/b/metrics", "/peers/x/exposed/"])
    {
        assert_eq!(route(path), None, "{path}");
    }
}

#[test]
fn a_scraper_gets_its_answer_before_it_gives_up() {
    let time = |value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(TIMEOUT_HEADER, HeaderValue::from_str(value).unwrap());
        super::time(&headers)
    };
    assert_eq!(super::time(&HeaderMap::new()), Duration::from_millis(9500));
    assert_eq!(time("10"), Duration::from_millis(9500));
    assert_eq!(time(" 2.5 "), Duration::from_millis(2250));
    assert_eq!(time("0.01"), Duration::from_millis(9));
    assert_eq!(time("1e9"), Duration::from_millis(119_500));
    for nonsense in ["", "x", "-1", "0", "NaN", "inf", "1e400"] {
        assert_eq!(time(nonsense), Duration::from_millis(9500), "{nonsense}");
    }
}

#[test]
fn a_host_that_prometheus_would_reject_as_a_target_is_not_used() {
    for good in ["gw:8080", "192.0.2.1", "[2001:db8::1]:8080", "gw.example.org:80"] {
        assert!(is_address(good), "{good}");
    }
    for bad in ["", "gw/x", "gw x", "gw\"", "gw,gw", &"x".repeat(256)] {
        assert!(!is_address(bad), "{bad}");
    }
}
