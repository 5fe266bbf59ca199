//! Any bytes as a run's configuration: TOML, and behind each zero byte a `--set`. What is accepted
//! is written and read back as the same configuration.
#![no_main]

use bt_stream::config::RunConfig;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let overrides: Vec<String> = parts.map(str::to_owned).collect();
    match RunConfig::parse(file, "fuzz.toml", &overrides) {
        Ok(config) => {
            let written = config.to_toml().expect("a configuration is TOML");
            let again = RunConfig::parse(&written, "again.toml", &[]).expect("what was written");
            assert_eq!(again.to_toml().expect("a configuration is TOML"), written);
            let _ = (config.loader(), config.eval_loader());
        }
        // What a `--set` holds is quoted as it is.
        Err(error) if overrides.is_empty() => assert!(!format!("{error:#}").contains('\n')),
        Err(_) => {}
    }
});
