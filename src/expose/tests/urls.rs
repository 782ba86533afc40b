//! Which URLs are accepted, and which of them are on this machine.

use proptest::prelude::*;

use super::*;

fn url(text: &str) -> ExposedUrl {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn urls_are_parsed() {
    let name = |name: &str| Host::Name(name.into());
    let ip = |ip: &str| Host::Ip(ip.parse().unwrap());
    for (text, host, port, authority, target) in [
        ("http://127.0.0.1:9100/metrics", ip("127.0.0.1"), 9100, "127.0.0.1:9100", "/metrics"),
        ("HTTP://[::1]/m?a=b&c=/@d?", ip("::1"), 80, "[::1]", "/m?a=b&c=/@d?"),
        ("http://LOCALHOST:65535/", Host::Localhost, 65535, "LOCALHOST:65535", "/"),
        ("http://host-1.example_2.org./%20//x", name("host-1.example_2.org."), 80, "host-1.example_2.org.", "/%20//x"),
        ("http://7zip.1a/m", name("7zip.1a"), 80, "7zip.1a", "/m"),
    ] {
        let url = url(text);
        assert_eq!((url.host(), url.port()), (&host, port), "{text}");
        assert_eq!((url.authority().to_str().unwrap(), url.target().as_str()), (authority, target));
        assert_eq!(url.to_string(), text);
    }
}

#[test]
fn only_hosts_that_must_be_this_machine_are_local() {
    for text in
        ["http://127.0.0.1/", "http://127.255.255.254/", "http://[::1]/", "http://[0:0::1]/", "http://localhost/"]
    {
        assert!(url(text).is_local(), "{text}");
    }
    for text in [
        "http://0.0.0.0/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://128.0.0.1/",
        "http://localhost./",
        "http://localhost.localdomain/",
        "http://127.0.0.1.example/",
    ] {
        assert!(!url(text).is_local(), "{text}");
    }
}

#[test]
fn hosts_that_programs_read_differently_are_rejected() {
    for host in [
        "",
        "127.1",
        "0177.0.0.1",
        "127.0.0.01",
        "0x7f.0.0.0x1",
        "2130706433",
        "0x7f000001",
        "1.2.3.4.5",
        "a..b",
        ".a",
        "-%31",
        "a%00b",
        "127.0.0.1\\",
        "::1",
        "[::1",
        "::1]",
        "[::1]x",
        "[fe80::1%25lo]",
        "[127.0.0.1]",
        "a,b",
        "[]",
        "a:b:1",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "[::1]:",
        "[::1]:0",
        "[::1]1",
    ] {
        let text = format!("http://{host}/metrics");
        let error = text.parse::<ExposedUrl>().unwrap_err();
        let known = ["has no valid host", "has no valid port", "contains a space"];
        assert!(known.iter().any(|known| error.starts_with(known)), "{text}: {error}");
    }
    let long = format!("http://{}/", vec!["a".repeat(63); 4].join("."));
    assert!(long.parse::<ExposedUrl>().is_err());
}

proptest! {
    /// No URL can break out of the request line or the head, and each one parses again from its own text.
    #[test]
    fn no_url_breaks_out_of_its_request(text in "(http://)?[\\PC\r\n\t]{0,20}(/[\\PC\r\n]{0,20})?") {
        if let Ok(url) = text.parse::<ExposedUrl>() {
            let request = request(&url, None, true, Duration::ZERO);
            let sent = format!("{}{}", request.uri(), request.headers()["host"].to_str().unwrap());
            prop_assert!(sent.bytes().all(|b| b.is_ascii_graphic()), "{}", sent);
            prop_assert_eq!(url.to_string().parse(), Ok(url));
        }
    }

    #[test]
    fn a_valid_name_is_kept_unchanged(text in "\\PC{0,40}") {
        if let Ok(name) = text.parse::<ExposedName>() {
            prop_assert_eq!(name.as_str(), text.as_str());
            prop_assert!((1..=32).contains(&text.len()));
        }
    }
}
