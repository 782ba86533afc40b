//! Any text is a valid configuration or gives at least one problem of one line each; and what is
//! valid prints to something that loads as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peerscope::config::Config;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::from_yaml("fuzz.yaml", text) {
        Ok(config) => {
            let printed = config.to_yaml_masked();
            // Masking changes passwords, and only them: the second time nothing changes any more.
            let again = Config::from_yaml("printed.yaml", &printed).expect("what is printed loads");
            assert_eq!(again.to_yaml_masked(), printed);
        }
        Err(error) => {
            assert!(!error.problems().is_empty());
            assert_eq!(error.to_string().lines().count(), error.problems().len());
        }
    }
});
