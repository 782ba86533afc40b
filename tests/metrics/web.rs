//! The web configuration: TLS and users, on a real agent.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::support::agent::{TestAgent, connect, eventually};
use crate::support::apart;
use crate::support::certificates::{Ca, Issued, connect_tls};
use crate::support::http::{self, Reply};
use crate::support::metrics::value;

/// An agent whose web configuration is the file `web.yml` in its home, next to `server.pem` and `server.key`.
struct Protected {
    agent: TestAgent,
    ca: Ca,
}

const WITH_TLS: &str = "tls_server_config: { cert_file: server.pem, key_file: server.key }\n";

/// bcrypt's lowest cost, so that tests are fast.
fn hash(password: &str) -> String {
    bcrypt::hash(password, 4).unwrap()
}

fn with_user(user: &str, password: &str) -> String {
    format!("basic_auth_users: {{ {user}: '{}' }}\n", hash(password))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

impl Protected {
    fn start(web: &str) -> Self {
        Self::configured(web, "")
    }

    /// With more keys in the section `metrics`.
    fn configured(web: &str, more: &str) -> Self {
        let (agent, ca) = (TestAgent::prepare(), Ca::new());
        let file = agent.home().join("web.yml");
        let config = format!("metrics:\n  web_config: {}\n{more}", file.display());
        let protected = Self { agent: agent.configured(&config), ca };
        let address = protected.agent.address().to_string();
        protected.issue(&protected.ca.issue(&[&address]));
        protected.write("web.yml", web);
        Self { agent: protected.agent.started(), ca: protected.ca }
    }

    fn write(&self, name: &str, text: &str) {
        write(&self.agent.home().join(name), text);
    }

    fn issue(&self, issued: &Issued) {
        self.write("server.pem", &issued.certificate);
        self.write("server.key", &issued.key);
    }

    fn socket(&self) -> SocketAddr {
        self.agent.metrics_socket()
    }

    fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.try_get(path, headers, None).unwrap()
    }

    fn try_get(&self, path: &str, headers: &[(&str, &str)], own: Option<&Issued>) -> io::Result<Reply> {
        let headers = [headers, &[("Host", "localhost")]].concat();
        http::get(connect_tls(self.socket(), &self.ca.pem(), own), path, &headers)
    }

    /// As a user, over plain HTTP.
    fn get_as(&self, user: &str, password: &str) -> Reply {
        let headers = [("Host", "localhost"), ("Authorization", &basic(user, password))];
        http::get(connect(self.socket()).unwrap(), "/metrics", &headers).unwrap()
    }
}

/// Replaces a file as careful programs do.
fn write(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, path).unwrap();
}

#[test]
fn tls_and_a_user_protect_every_page_except_open_probes() {
    let web = WITH_TLS.to_owned() + &with_user("prometheus", "secret");
    let protected = Protected::configured(&web, "  open_probes: true\n");
    let authorization = basic("prometheus", "secret");
    for path in ["/", "/metrics", "/nothing-here"] {
        let refused = protected.get(path, &[]);
        assert_eq!(refused.status, 401, "{path}");
        assert!(refused.header("www-authenticate").unwrap().starts_with("Basic "), "{refused:?}");
        assert!(!refused.text().contains("agent"), "{}", refused.text());
    }
    assert_eq!(protected.get("/live", &[]).text(), "live\n");
    assert_eq!(protected.get("/ready", &[]).status, 200);
    let page = protected.get("/metrics", &[("Authorization", &authorization)]);
    assert_eq!(page.status, 200);
    let refused = [("handler", "metrics"), ("code", "401")];
    assert_eq!(value(&page.text(), "http_requests_total", &refused), 1.0);
    let wrong = [
        "prometheus:wrong",
        "nobody:secret",
        "prometheus:",
        ":",
        "",
        "prometheus:secret\0",
        "prometheus:secret\0secret",
    ];
    for credentials in wrong {
        let header = format!("Basic {}", BASE64_STANDARD.encode(credentials));
        assert_eq!(protected.get("/metrics", &[("Authorization", &header)]).status, 401, "{credentials:?}");
    }
    for header in ["Basic", "Basic !", "Bearer secret", &format!("Digest {}", &authorization[6..])] {
        assert_eq!(protected.get("/metrics", &[("Authorization", header)]).status, 401, "{header}");
    }
    let log = protected.agent.log();
    assert!(log.iter().any(|line| line.contains("Metrics at https://")), "{log:?}");
    assert_eq!(protected.agent.status()["metrics"].as_str().unwrap().split("://").next(), Some("https"));
}

#[test]
fn headers_of_the_web_configuration_are_in_every_response_that_has_none_of_its_own() {
    let web = "http_server_config:\n  headers:\n    Strict-Transport-Security: max-age=600\n    Content-Security-Policy: none\n";
    let protected = Protected::start(web);
    let page = protected.agent.http("/");
    assert_eq!(page.header("strict-transport-security"), Some("max-age=600"));
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"), "{page:?}");
    assert_eq!(protected.agent.http("/metrics").header("content-security-policy"), Some("none"));
}

#[test]
fn a_new_certificate_and_new_users_count_at_the_next_connection() {
    let mut protected = Protected::start(&(WITH_TLS.to_owned() + &with_user("a", "old")));
    let as_a = basic("a", "old");
    let mut kept = connect_tls(protected.socket(), &protected.ca.pem(), None);
    let over =
        |stream: &mut _| http::get(stream, "/metrics", &[("Host", "localhost"), ("Authorization", &as_a)]).unwrap();
    assert_eq!(over(&mut kept).status, 200);

    let renewed = Ca::new();
    let address = protected.agent.address().to_string();
    let old = std::mem::replace(&mut protected.ca, renewed);
    protected.issue(&protected.ca.issue(&[&address]));
    assert_eq!(protected.get("/metrics", &[("Authorization", &as_a)]).status, 200);
    let error = http::get(connect_tls(protected.socket(), &old.pem(), None), "/metrics", &[]).unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");

    protected.write("web.yml", &(WITH_TLS.to_owned() + &with_user("b", "new")));
    assert_eq!(protected.get("/metrics", &[("Authorization", &as_a)]).status, 401, "a is no longer a user");
    assert_eq!(protected.get("/metrics", &[("Authorization", &basic("b", "new"))]).status, 200);
    // The connection was open all the time.
    assert_eq!(over(&mut kept).status, 401);

    // Without TLS and users, the next connection is a plain one. One that is open is answered for the last time.
    let mut kept = connect_tls(protected.socket(), &protected.ca.pem(), None);
    assert_eq!(http::get(&mut kept, "/live", &[("Host", "localhost")]).unwrap().status, 401);
    protected.write("web.yml", "{}\n");
    eventually("it is plain once the file has settled", || protected.agent.http("/metrics").status == 200);
    assert_eq!(protected.agent.status()["metrics"].as_str().unwrap().split("://").next(), Some("http"));
    protected.agent.await_log("TLS is off now: ");
    protected.agent.await_log("nobody needs a password now: ");
    let last = http::get(&mut kept, "/live", &[("Host", "localhost")]).unwrap();
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
}

#[test]
fn a_broken_file_leaves_the_last_good_one_in_use_and_shows_in_a_metric() {
    let protected = Protected::start(&(WITH_TLS.to_owned() + &with_user("a", "old")));
    let as_a = basic("a", "old");
    let page = || protected.get("/metrics", &[("Authorization", &as_a)]).text();
    let good = page();
    assert_eq!(value(&good, "web_config_last_reload_successful", &[]), 1.0);
    let read_at = value(&good, "web_config_last_reload_success_timestamp_seconds", &[]);

    for (file, broken, said) in [
        ("web.yml", "", "web.yml: is empty; write {} for neither TLS nor users"),
        ("web.yml", "# all commented out\n", "web.yml: is empty"),
        ("web.yml", "tls_server_config: [", "web.yml:2:1: invalid YAML"),
        ("web.yml", "basic_auth_users: { a: plain }\n", "web.yml:1:24: basic_auth_users.a: is not a bcrypt hash"),
        ("server.key", "no key", "holds no private key"),
        ("server.pem", "no certificate", "server.pem holds no certificate"),
    ] {
        let path = protected.agent.home().join(file);
        let before = std::fs::read_to_string(&path).unwrap();
        write(&path, broken);
        assert_eq!(value(&page(), "web_config_last_reload_successful", &[]), 0.0, "{file}: {broken}");
        protected.agent.await_log(said);
        write(&path, &before);
        let mended = page();
        assert_eq!(value(&mended, "web_config_last_reload_successful", &[]), 1.0, "{file}");
        assert!(value(&mended, "web_config_last_reload_success_timestamp_seconds", &[]) >= read_at);
    }
    let missing = protected.agent.home().join("server.pem");
    std::fs::rename(&missing, missing.with_extension("away")).unwrap();
    assert_eq!(value(&page(), "web_config_last_reload_successful", &[]), 0.0);
    protected.agent.await_log("server.pem (tls_server_config.cert_file): No such file");
    // A failed reading is logged once, however many connections notice it.
    for _ in 0..5 {
        page();
    }
    let log = protected.agent.log();
    assert_eq!(log.iter().filter(|line| line.contains("No such file")).count(), 1, "{log:?}");
}

/// Opening a pipe that nobody writes to would block for ever.
#[test]
fn what_is_no_regular_file_is_not_read() {
    let protected = Protected::start(&(WITH_TLS.to_owned() + &with_user("a", "old")));
    let (as_a, home) = (basic("a", "old"), protected.agent.home().to_owned());
    for name in ["web.yml", "server.pem"] {
        let file = home.join(name);
        let before = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
        let began = Instant::now();
        let page = protected.get("/metrics", &[("Authorization", &as_a)]);
        assert_eq!((page.status, value(&page.text(), "web_config_last_reload_successful", &[])), (200, 0.0), "{name}");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        protected.agent.await_log("it is not a regular file");
        assert!(protected.agent.cli(&["status"]).text().contains("metrics.web_config is NOT in use as it is: "));
        assert!(protected.agent.cli(&["check"]).failed(78).contains("it is not a regular file"));
        std::fs::remove_file(&file).unwrap();
        write(&file, &before);
        let page = protected.get("/metrics", &[("Authorization", &as_a)]);
        assert_eq!(value(&page.text(), "web_config_last_reload_successful", &[]), 1.0);
        assert!(!protected.agent.cli(&["status"]).text().contains("NOT in use"));
    }
}

/// As any program that writes a file in place does.
#[test]
fn a_half_written_file_opens_nothing() {
    let whole = WITH_TLS.to_owned() + &with_user("a", "secret");
    let protected = Protected::start(&whole);
    let path = protected.agent.home().join("web.yml");
    for end in 0..whole.len() {
        std::fs::write(&path, &whole[..end]).unwrap();
        let refused = protected.get("/metrics", &[]);
        assert_eq!(refused.status, 401, "{:?}", &whole[..end]);
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(protected.get("/metrics", &[("Authorization", &basic("a", "secret"))]).status, 200);
    let log = protected.agent.log();
    assert!(!log.iter().any(|line| line.contains("is off now") || line.contains("needs a password now")), "{log:?}");
}

/// The processor time of one thread, in seconds.
fn cpu(agent: &TestAgent, thread: &str) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
    let mut times = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        name.ends_with(&format!("({thread}")).then_some(ticks / rustix::param::clock_ticks_per_second() as f64)
    });
    times.next().expect("the thread runs")
}

/// Eight clients guess without pause, each time another password. bcrypt with the usual cost takes tens of
/// milliseconds (and more in a debug build), so a scraper whose password had to wait behind theirs would be late.
#[test]
fn guesses_cost_a_quarter_of_a_core_at_most_and_delay_no_scraper() {
    let web = format!("basic_auth_users: {{ prometheus: '{}' }}\n", bcrypt::hash("secret", 10).unwrap());
    let protected = Protected::start(&web);
    assert_eq!(protected.get_as("prometheus", "secret").status, 200);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for guesser in 0..8 {
            let (protected, stop) = (&protected, &stop);
            scope.spawn(move || {
                for guess in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // The same name, and others: an unknown one costs the same.
                    let user = if guess % 2 == 0 { "prometheus" } else { "nobody" };
                    let status = protected.get_as(user, &format!("{guesser}-{guess}")).status;
                    assert!(matches!(status, 401 | 503), "{status}");
                }
            });
        }
        let (began, cpu_before) = (Instant::now(), cpu(&protected.agent, "web-passwords"));
        let mut slowest = Duration::ZERO;
        while began.elapsed() < Duration::from_secs(5) {
            let asked = Instant::now();
            let page = protected.get_as("prometheus", "secret");
            slowest = slowest.max(asked.elapsed());
            assert_eq!(page.status, 200);
        }
        let used = (cpu(&protected.agent, "web-passwords") - cpu_before) / began.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        assert!(used > 0.01, "they were checked: {used}");
        assert!(used < 0.35, "{used} of a core");
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    });
}

#[test]
fn clients_certificates_are_checked_as_configured() {
    let protected = Protected::start(WITH_TLS);
    let (good, other) = (Ca::new(), Ca::new());
    protected.write("clients.pem", &good.pem());
    let known = good.issue(&["scraper.example", "10.0.0.1", "spiffe://example/scraper"]);
    let foreign = other.issue(&["scraper.example"]);
    let expired = good.issue_until(&["scraper.example"], 2000);
    let wildcard = good.issue(&["*.example"]);
    let opens = |own: Option<&Issued>| protected.try_get("/metrics", &[], own).is_ok_and(|reply| reply.status == 200);
    let cases: [(&str, [bool; 5]); 10] = [
        // none, known, foreign, expired, wildcard
        ("NoClientCert", [true, true, true, true, true]),
        ("RequestClientCert", [true, true, true, true, true]),
        ("RequireAnyClientCert", [false, true, true, true, true]),
        ("VerifyClientCertIfGiven, client_ca_file: clients.pem", [true, true, false, false, true]),
        ("RequireAndVerifyClientCert, client_ca_file: clients.pem", [false, true, false, false, true]),
        (
            "RequireAndVerifyClientCert, client_ca_file: clients.pem, max_version: TLS12",
            [false, true, false, false, true],
        ),
        (
            "RequireAndVerifyClientCert, client_ca_file: clients.pem, client_allowed_sans: [scraper.example]",
            [false, true, false, false, false],
        ),
        (
            "RequireAndVerifyClientCert, client_ca_file: clients.pem, client_allowed_sans: [x, 10.0.0.1]",
            [false, true, false, false, false],
        ),
        (
            "RequireAndVerifyClientCert, client_ca_file: clients.pem, client_allowed_sans: ['spiffe://example/scraper']",
            [false, true, false, false, false],
        ),
        (
            "RequireAndVerifyClientCert, client_ca_file: clients.pem, client_allowed_sans: [other.example, 10.0.0.2]",
            [false, false, false, false, false],
        ),
    ];
    for (how, expected) in cases {
        let tls =
            format!("tls_server_config: {{ cert_file: server.pem, key_file: server.key, client_auth_type: {how} }}\n");
        protected.write("web.yml", &tls);
        let seen = [None, Some(&known), Some(&foreign), Some(&expired), Some(&wildcard)].map(opens);
        assert_eq!(seen, expected, "{how}");
    }
    protected.agent.await_log("TLS could not be established with");
    protected.write("web.yml", WITH_TLS);
    let page = protected.get("/metrics", &[]).text();
    assert!(value(&page, "http_tls_handshake_failures_total", &[]) >= 16.0, "{page}");
}

#[test]
fn what_cannot_be_honoured_is_an_error_with_its_place() {
    let agent = TestAgent::prepare();
    let (file, ca) = (agent.home().join("web.yml"), Ca::new());
    let agent = agent.configured(&format!("metrics: {{ web_config: {} }}\n", file.display()));
    let Issued { certificate, key } = ca.issue(&["a.example"]);
    for (name, text) in [
        ("a.pem", certificate),
        ("a.key", key),
        ("other.key", ca.issue(&["b.example"]).key),
        ("large.pem", " ".repeat(2 << 20)),
    ] {
        std::fs::write(agent.home().join(name), text).unwrap();
    }
    let (tls, hash) = ("tls_server_config:\n  cert_file: a.pem\n  key_file: a.key\n", hash("a"));
    let expensive = hash.replacen("$04$", "$15$", 1);
    let cases = [
        (
            format!("{tls}  min_version: TLS10\n"),
            "web.yml:4:16: tls_server_config.min_version: TLS 1.0 and 1.1 are not supported",
        ),
        (format!("{tls}  min_version: TLS13\n  max_version: TLS12\n"), "min_version is higher than max_version"),
        (
            format!("{tls}  cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n"),
            "is not a cipher suite that is supported here",
        ),
        (format!("{tls}  curve_preferences: [CurveP521]\n"), "is not a curve that is supported here"),
        (
            format!("{tls}  client_auth_type: Always\n"),
            "web.yml:4:21: tls_server_config.client_auth_type: unknown value `Always`",
        ),
        (format!("{tls}  client_auth_type: RequireAndVerifyClientCert\n"), "needs client_ca_file"),
        (format!("{tls}  client_ca_file: a.pem\n"), "client_auth_type is NoClientCert"),
        (format!("{tls}  client_allowed_sans: [a]\n"), "needs a verified certificate"),
        (format!("{tls}  client_allowed_sans: [a@b]\n"), "an email address is not supported"),
        (format!("{tls}  cert: x\n"), "has both cert and cert_file"),
        (format!("{tls}  certfile: x\n"), "unknown key; did you mean `cert_file`?"),
        ("tls_server_config: { cert_file: a.pem }\n".into(), "no key_file"),
        ("tls_server_config: { key_file: a.key }\n".into(), "needs cert_file and key_file"),
        ("tls_server_config: { cert_file: a.pem, key_file: other.key }\n".into(), "cannot be used with the key"),
        (
            "tls_server_config: { cert_file: absent.pem, key_file: a.key }\n".into(),
            "absent.pem (tls_server_config.cert_file): No such file",
        ),
        ("tls_server_config: { cert_file: large.pem, key_file: a.key }\n".into(), "it is larger than 1048576 bytes"),
        (
            "http_server_config: { http2: true }\n".into(),
            "web.yml:1:30: http_server_config.http2: HTTP/2 is not supported",
        ),
        ("http_server_config: { headers: { Server: x } }\n".into(), "the header `Server` cannot be set"),
        ("rate_limit: { interval: 1s }\n".into(), "rate_limit: is not supported"),
        ("basic_auth_users: { a: hunter2 }\n".into(), "is not a bcrypt hash"),
        (format!("basic_auth_users: {{ a: '{expensive}' }}\n"), "the hash has cost 15"),
        (format!("basic_auth_users: {{ 'a:b': '{hash}' }}\n"), "can never log in"),
        ("basic_auth_users:\n".into(), "web.yml:1:1: basic_auth_users: found nothing; expected a map"),
        ("tls_server_config:\n".into(), "needs cert_file and key_file"),
        // With bits that no bcrypt sets.
        (format!("basic_auth_users: {{ a: '{}/' }}\n", &hash[..59]), "is not a bcrypt hash"),
        ("# nothing\n\n".into(), "is empty; write {} for neither TLS nor users"),
    ];
    for (text, expected) in cases {
        std::fs::write(&file, &text).unwrap();
        let message = agent.cli(&["check"]).failed(78);
        assert!(message.contains(expected), "{text}: {message}");
        assert!(!message.contains("hunter2"), "a password is not repeated: {message}");
    }
    for text in [
        "{}\n".to_owned(),
        "basic_auth_users: {}\n".into(),
        format!(
            "{tls}  client_auth_type: ''\n  min_version: TLS12\n  max_version: TLS13\n  prefer_server_cipher_suites: true\n  \
             cipher_suites: [TLS_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n  \
             curve_preferences: [X25519, CurveP256, CurveP384]\nhttp_server_config: {{ http2: false, headers: {{}} }}\n"
        ),
        format!("basic_auth_users: {{ a: '{}' }}\n", hash.replacen("$2b$", "$2y$", 1)),
    ] {
        std::fs::write(&file, &text).unwrap();
        let checked = agent.cli(&["check"]);
        assert_eq!(checked.code, 0, "{text}: {}", checked.stderr);
    }
    // An agent does not start without the protection that it was told to have.
    std::fs::remove_file(&file).unwrap();
    let message = agent.cli(&["run", "--listen", "/ip4/127.0.0.1/tcp/0", "--metrics-port", "0"]);
    assert!(message.code == 78 && message.stderr.contains("metrics.web_config"), "{message:?}");
}

#[test]
fn who_speaks_the_wrong_protocol_is_told() {
    let protected = Protected::start(WITH_TLS);
    let reply = protected.agent.http("/metrics");
    assert_eq!((reply.status, reply.reason.as_str()), (400, "This port speaks HTTPS - set scheme: https"));
    assert_eq!(reply.text(), "This port speaks HTTPS; use https:// (Prometheus: scheme: https)\n");
    protected.agent.await_log("the client does not speak TLS; is its scheme http?");

    let plain = Protected::start("{}\n");
    assert!(plain.try_get("/metrics", &[], None).is_err());
    plain
        .agent
        .await_log("speaks TLS to the metrics endpoint, which does not (metrics.web_config); is its scheme https?");
}

#[test]
fn an_endpoint_that_everybody_can_read_says_so_at_the_start() {
    // In a network of its own, since the agent listens on every interface.
    apart::run("--net", "metrics::web::an_endpoint_that_everybody_can_read_says_so_at_the_start", || {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        let said = |web: &str, more: &str| {
            let agent = TestAgent::prepare().on_address(Ipv4Addr::UNSPECIFIED);
            let file = agent.home().join("web.yml");
            let Issued { certificate, key } = Ca::new().issue(&["127.0.0.1"]);
            std::fs::write(agent.home().join("server.pem"), certificate).unwrap();
            std::fs::write(agent.home().join("server.key"), key).unwrap();
            std::fs::write(&file, web).unwrap();
            let agent = agent.configured(&format!("metrics: {{ web_config: {} }}\n{more}", file.display())).started();
            agent.log().into_iter().filter(|line| line.contains("Anyone who can reach 0.0.0.0:")).collect::<Vec<_>>()
        };
        let open = said("{}\n", "");
        assert!(
            open.len() == 1 && open[0].contains("can read the metrics: metrics.web_config has no users"),
            "{open:?}"
        );
        let gateway = said(WITH_TLS, "gateway: { enabled: true }\n");
        assert!(gateway.len() == 1 && gateway[0].contains("the list of peers with their addresses"), "{gateway:?}");
        assert_eq!(said(&with_user("a", "b"), ""), Vec::<String>::new());
        assert!(said("{}\n", "").len() == 1, "the first answer was no accident");
    });
}

/// A new browser in a home of its own; what it shows, as HTML.
struct Browser {
    home: tempfile::TempDir,
}

impl Browser {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join(".pki/nssdb")).unwrap();
        let browser = Self { home };
        browser.certutil(&["-N", "--empty-password"]);
        browser
    }

    fn certutil(&self, args: &[&str]) {
        let program = std::env::var_os("TEST_CERTUTIL").expect("run tests/tools.sh");
        let database = format!("sql:{}", self.home.path().join(".pki/nssdb").display());
        let output = Command::new(program).args(["-d", &database]).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn trust(&self, ca: &str) {
        let file = self.home.path().join("ca.pem");
        std::fs::write(&file, ca).unwrap();
        self.certutil(&["-A", "-t", "C,,", "-n", "ca", "-i", file.to_str().unwrap()]);
    }

    fn show(&self, url: &str) -> String {
        let program = std::env::var_os("TEST_CHROMIUM").expect("run tests/tools.sh");
        let profile = format!("--user-data-dir={}", self.home.path().join("profile").display());
        let output = Command::new(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", &profile, url])
            .env("HOME", self.home.path())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
fn a_browser_shows_the_page_if_it_trusts_the_ca_and_has_the_password() {
    let protected = Protected::start(&(WITH_TLS.to_owned() + &with_user("a", "secret")));
    let (browser, page) = (Browser::new(), "<h1>");
    let (as_user, address) = (format!("https://a:secret@{}/", protected.socket()), protected.socket());
    assert!(!browser.show(&as_user).contains(page));
    protected.agent.await_log("TLS could not be established with");
    browser.trust(&protected.ca.pem());
    let shown = browser.show(&as_user);
    assert!(shown.contains(page) && shown.contains(&protected.agent.peer_id()), "{shown}");
    for refused in [format!("https://{address}/"), format!("https://a:wrong@{address}/")] {
        assert!(!browser.show(&refused).contains(page), "{refused}");
    }
    protected.issue(&protected.ca.issue_until(&[&protected.agent.address().to_string()], 2000));
    assert!(!browser.show(&as_user).contains(page), "the certificate has expired");
    protected.issue(&protected.ca.issue(&["other.example"]));
    assert!(!browser.show(&as_user).contains(page), "the name is another one");
    protected.issue(&protected.ca.issue(&[&protected.agent.address().to_string()]));
    assert!(browser.show(&as_user).contains(page), "and it works again, without a restart");
}

#[test]
fn curl_gets_the_page_as_the_documents_say() {
    let protected = Protected::start(&(WITH_TLS.to_owned() + &with_user("prometheus", "secret")));
    let ca = protected.agent.home().join("ca.pem");
    std::fs::write(&ca, protected.ca.pem()).unwrap();
    let url = format!("https://{}/metrics", protected.socket());
    let curl = |more: &[&str]| {
        let args = ["-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code} %{http_version} ", &url];
        let output = Command::new("curl").args(args).args(more).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let ca = ca.to_str().unwrap();
    assert_eq!(curl(&["--cacert", ca, "-u", "prometheus:secret"]), "200 1.1 ");
    assert_eq!(curl(&["--cacert", ca, "-u", "prometheus:secret", "--http2"]), "200 1.1 ");
    assert_eq!(curl(&["--cacert", ca, "-u", "prometheus:secret", "--tls-max", "1.2"]), "200 1.1 ");
    assert_eq!(curl(&["--cacert", ca]), "401 1.1 ");
    assert!(curl(&["-u", "prometheus:secret"]).contains("unable to get local issuer certificate"));
    let old = curl(&["--cacert", ca, "--tls-max", "1.1"]);
    assert!(old.starts_with("000"), "{old}");
}
