//! What a wrong configuration is told, and that what is saved loads again.

use super::*;

fn error_of(overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    format!("{:#}", RunConfig::load(None, &overrides).unwrap_err())
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    let message = error_of(&["train.epoch=3"]);
    assert!(message.contains("`train.epoch`") && message.contains("`epochs`"), "{message}");
    let message = error_of(&["views.both.gausian_blur.p=0.5"]);
    assert!(message.contains("`gaussian_blur`"), "{message}");
    let message = error_of(&["trian.epochs=3"]);
    assert!(message.contains("`train`"), "{message}");
    let message = error_of(&["data.shuffle=globl"]);
    assert!(message.contains("`global`"), "{message}");
}

#[test]
fn a_value_of_another_kind_is_told_in_words_of_the_file() {
    for (pair, words) in [
        ("views.both.color_jitter.hue='much'", "expected a strength or `[low, high]`"),
        ("views.a.color_jitter.brightness=[1]", "expected a strength or `[low, high]`"),
        ("views.both.random_resized_crop.size=[1, 2, 3]", "expected pixels or `[height, width]`"),
        ("views.both.random_grayscale=0.5", "`views.both.random_grayscale`: invalid type: "),
        ("data=7", "expected a section"),
    ] {
        let message = error_of(&[pair]);
        assert!(message.contains(words), "{pair}: {message}");
        let code = ["struct", "Patch", "Config", "Range", "variant"];
        assert!(!code.iter().any(|word| message.contains(word)), "{pair}: {message}");
    }
}

#[test]
fn an_unknown_option_of_the_objective_is_an_error() {
    let message = error_of(&["loss.lamda=0.1"]);
    assert!(message.contains("lamda") && message.contains("lambda"), "{message}");
}

#[test]
fn another_method_leaves_the_files_options_and_keeps_ones_own() {
    let file = "method = 'barlow'\n[loss]\nlambda = 0.1";
    let of = |pairs: &[&str]| {
        let pairs: Vec<String> = pairs.iter().map(|pair| pair.to_string()).collect();
        RunConfig::parse(file, "", &pairs)
    };
    assert!(of(&["method=infonce"]).unwrap().loss.is_empty());
    let own = of(&["loss.temperature=0.3", "method=infonce"]).unwrap().loss;
    assert_eq!(own.to_string().trim(), "temperature = 0.3");
    assert!(of(&["method=barlow"]).unwrap().loss.contains_key("lambda"));
    assert!(of(&["loss.lambda=0.2", "method=infonce"]).is_err());
    // The queue depends on the embeddings' dimension.
    let full = of(&["method=moco"]).unwrap().in_full().unwrap();
    assert_eq!(full.loss["queue"].as_integer(), Some(1024));
}

#[test]
fn what_is_allocated_at_once_has_a_bound() {
    for (pairs, words) in [
        (&["train.batch_size=1048577"][..], "train.batch_size` is at most 1048576, got 1048577"),
        (&["loss.predictor=4294967296"], "`loss.predictor` is at most 65536, got 4294967296"),
        (&["method=byol", "loss.predictor_hidden=65537"], "`loss.predictor_hidden` is at most"),
        (&["method=simsiam", "loss.predictor_hidden=0"], "`loss.predictor_hidden` must be at"),
        (&["method=moco", "loss.queue=16777217"], "`loss.queue` is at most 16777216, got 16777217"),
        (&["data.budget_mb=0"], "`data.budget_mb` must be at least 1, got 0"),
        (&["data.limits.zstd_window_log=40"], "between 10 and 31, got 40"),
    ] {
        let message = error_of(pairs);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn only_lars_has_two_rates_by_default() {
    let rates = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
        let optim = RunConfig::parse("", "", &overrides).unwrap().optim;
        (optim.lr_weights, optim.lr_biases)
    };
    assert_eq!(rates(&[]), (0.2, 0.0048));
    assert_eq!(rates(&["optim.optimizer=adamw"]), (1e-3, 1e-3));
    assert_eq!(rates(&["optim.optimizer=sgd", "optim.lr_weights=1"]), (1.0, 1.0));
    assert_eq!(rates(&["optim.optimizer=adamw", "optim.lr_biases=0.5"]), (1e-3, 0.5));
}

#[test]
fn a_section_that_is_set_is_its_keys_and_the_others_stay() {
    let file = "[optim]\noptimizer = 'sgd'\nlr_biases = 0.5\n[views.both.gaussian_blur]\nsigma = [1.0, 2.0]";
    let of = |pair: &str| RunConfig::parse(file, "", &[pair.to_owned()]);
    let optim = of("optim = {lr_weights=0.1, momentum=0.8}").unwrap().optim;
    assert_eq!((optim.optimizer.name(), optim.lr_weights, optim.lr_biases), ("sgd", 0.1, 0.5));
    assert_eq!(optim.momentum, 0.8);
    let blur = of("views={both={gaussian_blur={p=0.5}}}").unwrap().views.both.gaussian_blur;
    assert_eq!(blur.map(|blur| (blur.p, blur.sigma)), Some((Some(0.5), Some([1.0, 2.0]))));
    assert_eq!(of("optim={}").unwrap().optim.optimizer.name(), "lars");
    assert!(error_of(&["train.epochs=3", "train={epochs={a=1}}"]).contains("`epochs` is a value"));
}

#[test]
fn a_window_that_holds_nothing_is_refused_where_it_is_read() {
    for key in ["data.window_samples", "data.window_shards"] {
        let empty = format!("{key}=0");
        let message = error_of(&["data.shuffle=window", &empty]);
        assert!(message.contains(&format!("`{key}` must be at least 1")), "{message}");
        assert!(RunConfig::load(None, &[empty]).is_ok());
    }
}

#[test]
fn what_is_no_toml_is_told_with_its_line() {
    let text = "method = 'barlow'\n# größer\n[train]\nepochs = = 3\n";
    let message = format!("{:#}", RunConfig::parse(text, "run.toml", &[]).unwrap_err());
    assert!(message.starts_with("run.toml: line 4: "), "{message}");
    let message = format!("{:#}", RunConfig::parse("a = 1\na = 2", "run.toml", &[]).unwrap_err());
    assert!(message.starts_with("run.toml: line 2: ") && !message.contains('\n'), "{message}");
}

#[test]
fn messages_are_one_line() {
    for overrides in [["train.epochs=abc"], ["train.epochs=0"], ["train=3"], ["x"]] {
        let message = error_of(&overrides);
        assert!(!message.contains('\n') && !message.is_empty(), "{message}");
    }
}

#[test]
fn what_is_saved_loads_as_the_same_configuration() {
    let overrides = ["loss.lambda=0.01".to_owned(), "views.a.gaussian_blur.p=0.3".to_owned()];
    let config = RunConfig::load(None, &overrides).unwrap();
    let text = config.to_toml().unwrap();
    let again = RunConfig::from_table(text.parse().unwrap()).unwrap();
    assert_eq!(again.to_toml().unwrap(), text);
    assert_eq!(again.views.views().unwrap()[0].gaussian_blur.p, 0.3);
    assert_eq!(again.views.views().unwrap()[1].gaussian_blur.p, 0.1);
}

#[test]
fn every_configuration_that_is_shipped_is_one() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let config = RunConfig::load(Some(&path), &[]);
        let config = config.unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
        assert_eq!(config.views.views().unwrap().len(), 2);
        config.optim.build().unwrap();
        count += 1;
    }
    assert!(count >= 5, "{count}");
}

#[test]
fn a_files_options_of_one_objective_are_not_those_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    std::fs::write(&file, "[loss]\nlambda = 0.01\n").unwrap();
    let of = |method: &str, pairs: &[String]| RunConfig::load_for(Some(&file), method, pairs);
    assert!(of("byol", &[]).unwrap().loss.is_empty());
    assert!(of("barlow", &[]).unwrap().loss.contains_key("lambda"));
    let asked = of("moco", &["loss.queue=64".into(), "method='simsiam'".into()]).unwrap();
    assert!(asked.method.0 == "moco" && asked.loss.contains_key("queue"));
    assert!(of("byol", &["loss.lambda=1.0".into()]).is_err());
}

#[test]
fn evaluations_take_smaller_batches_where_the_budget_is_small() {
    let config = |budget: u64| {
        let overrides = [format!("data.budget_mb={budget}")];
        RunConfig::load(None, &overrides).unwrap().eval_loader().unwrap()
    };
    // 224 x 224 x 3 values of 4 bytes, three batches of them.
    assert_eq!(config(64).batch_size, (64 << 20) / (224 * 224 * 3 * 4 * 3));
    assert_eq!(config(64).budget_bytes, 64 << 20);
    assert_eq!(config(2048).batch_size, 128);
    assert_eq!(config(1).batch_size, 1);
    let views = RunConfig::load(None, &[]).unwrap().views.views().unwrap();
    assert_eq!(room_for(&views, 8), 2 * 8 * 224 * 224 * 3 * 4 * 3);
}

#[test]
fn what_the_data_section_says_reaches_both_loaders() {
    use bt_pipeline::OnBad::{Skip, Stop};

    for (sample, shard, policies) in
        [("skip", "stop", (Skip, Stop)), ("stop", "skip", (Stop, Skip))]
    {
        let overrides = [
            format!("data.on_bad={sample}"),
            format!("data.on_bad_shard={shard}"),
            "data.threads=3".into(),
            "data.budget_mb=700".into(),
            "data.max_bad=0.25".into(),
            "data.exif=true".into(),
            "data.max_megapixels=7".into(),
            "data.limits.member_bytes=4096".into(),
            "data.shuffle=window".into(),
            "data.window_shards=5".into(),
            "data.window_samples=6".into(),
            "train.batch_size=24".into(),
            "train.seed=9".into(),
            "eval.batch_size=11".into(),
        ];
        let config = RunConfig::load(None, &overrides).unwrap();
        let (training, evaluation) = (config.loader().unwrap(), config.eval_loader().unwrap());
        for loader in [&training, &evaluation] {
            assert_eq!((loader.on_bad, loader.on_bad_shard), policies);
            assert_eq!((loader.threads, loader.budget_bytes), (3, 700 << 20));
            assert_eq!(loader.max_bad, 0.25);
            let DecodeOptions { exif, max_pixels, max_bytes, side_index } = loader.decode;
            assert_eq!((exif, max_pixels, max_bytes, side_index), (true, 7_000_000, 4096, true));
        }
        assert_eq!((training.batch_size, training.seed, training.drop_last), (24, 9, true));
        assert_eq!(training.shuffle, Shuffle::Window { shards: 5, samples: 6 });
        assert_eq!((evaluation.batch_size, evaluation.drop_last), (11, false));
        assert_eq!(evaluation.shuffle, Shuffle::None);
        let options = config.open_options();
        assert_eq!(options.keep_bad_shards, policies.1 == Skip);
        assert_eq!(options.limits.member_bytes, 4096);
    }
}

#[test]
fn what_the_data_section_says_of_servers_reaches_the_shards() {
    let overrides = [
        "data.cache='/srv/shards'".to_owned(),
        "data.cache_size=3GB".into(),
        "data.network_retries=7".into(),
        "data.network_timeout_s=45".into(),
        "data.network_requests=200".into(),
    ];
    let remote = RunConfig::load(None, &overrides).unwrap().open_options().remote;
    assert_eq!(remote.cache, Some("/srv/shards".into()));
    assert_eq!(remote.cache_bytes, 3_000_000_000);
    assert_eq!((remote.retries, remote.timeout.as_secs(), remote.parallel), (7, 45, 200));
    let of_threads = |threads: usize| {
        let threads = format!("data.threads={threads}");
        RunConfig::load(None, &[threads]).unwrap().open_options().remote
    };
    assert_eq!(of_threads(2), Default::default());
    assert_eq!(of_threads(64).parallel, 256);
}

#[test]
fn a_value_out_of_range_is_refused_by_its_key() {
    for pair in [
        "train.epochs=0",
        "train.batch_size=1",
        "train.log_every=0",
        "train.threads=4097",
        "train.device='gpu'",
        "checkpoint.every_epochs=0",
        "checkpoint.keep=0",
        "eval.k=0",
        "eval.batch_size=0",
        "eval.temperature=0.0",
        "eval.online_lr=0.0",
        "data.threads=4097",
        "data.budget_mb=1048577",
        "data.max_megapixels=0",
        "data.max_bad=1.5",
        "data.network_timeout_s=0",
        "data.network_requests=100001",
        "train.dir=''",
        "data.limits.zstd_window_log=9",
        "data.limits.zstd_window_log=32",
        "data.cache_size='much'",
        "model.width=0",
        "optim.final_lr=-0.1",
        "optim.constant_predictor=true",
    ] {
        let key = pair.split('=').next().unwrap();
        let message = error_of(&[pair]);
        assert!(message.contains(key), "{pair}: {message}");
    }
    let message = error_of(&["train.device=cpu", "train.precision=bf16"]);
    assert!(message.contains("train.precision"), "{message}");
    let message = error_of(&["views.a.random_resized_crop.size=200"]);
    assert!(message.contains("one size: 200 x 200 and 224 x 224"), "{message}");
}
