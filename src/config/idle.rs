//! Settings that do nothing beside the others: who sets one should hear of it.

use anyhow::Result;
use bt_pipeline::shard::names_urls;

use super::{Named, RunConfig, ShuffleKind};
use crate::optim::OptimizerKind;

impl RunConfig {
    /// Keys that were given another value than their default and do nothing here, each in a
    /// sentence with the reason.
    ///
    /// # Errors
    /// A method or an option that does not exist.
    pub fn idle(&self) -> Result<Vec<String>> {
        let (set, default) =
            (toml::Value::try_from(self)?, toml::Value::try_from(Self::default())?);
        let mut all: Vec<String> = self
            .unused()
            .into_iter()
            .filter(|(key, _)| at(&set, key) != at(&default, key))
            .map(|(key, why)| sentence(key, &why))
            .collect();
        all.extend(self.views.hidden()?.iter().map(|key| {
            sentence(&format!("views.both.{key}"), "views.a and views.b have values of their own")
        }));
        let off = self.views.never_drawn()?;
        all.extend(off.iter().map(|(key, why)| sentence(key, why)));
        let objective = self.objective()?;
        let options = objective.options();
        let defaults = crate::loss::build(&self.method.0, toml::Table::new())?.options();
        let idle = objective.idle().into_iter();
        let idle = idle.filter(|(option, _)| options.get(*option) != defaults.get(*option));
        all.extend(idle.map(|(option, why)| sentence(&format!("loss.{option}"), why)));
        Ok(all)
    }

    /// Keys outside `[loss]` that nobody reads, whatever their values, and why.
    fn unused(&self) -> Vec<(&'static str, String)> {
        let optimizer = self.optim.optimizer;
        let belongs_to = |owners: &[OptimizerKind]| !owners.contains(&optimizer);
        let (lars, sgd, adamw) = (OptimizerKind::Lars, OptimizerKind::Sgd, OptimizerKind::AdamW);
        let name = format!("optim.optimizer is `{}`", optimizer.name());
        let window = "data.shuffle is not `window`".to_owned();
        let cpu = self.train.named_device().is_ok_and(|named| named == Named::Cpu);
        let on_cpu = "train.device is `cpu`".to_owned();
        let layers = self.model.projector.0.len();
        let still = optimizer == sgd && self.optim.momentum == 0.0;
        let no_decay = optimizer != lars && self.optim.weight_decay == 0.0;
        // Sets that are not named here may be named elsewhere.
        let mut sets = [&self.data.train, &self.data.val].into_iter().filter(|set| !set.is_empty());
        let on_disk = sets.clone().next().is_some() && !sets.any(|set| names_urls(set));
        let files = "neither data.train nor data.val is behind URLs".to_owned();
        let rules = [
            (
                layers < 2,
                "model.projector_batch_norm",
                "model.projector has one layer, and none between".into(),
            ),
            (still, "optim.nesterov", "optim.momentum is 0".into()),
            (no_decay, "optim.decay_biases", "optim.weight_decay is 0".into()),
            (belongs_to(&[lars]), "optim.eta", name.clone()),
            (belongs_to(&[lars]), "optim.clip_lr", name.clone()),
            (belongs_to(&[lars, sgd]), "optim.momentum", name.clone()),
            (belongs_to(&[sgd]), "optim.nesterov", name.clone()),
            (belongs_to(&[sgd, adamw]), "optim.decay_biases", name.clone()),
            (belongs_to(&[adamw]), "optim.betas", name.clone()),
            (belongs_to(&[adamw]), "optim.eps", name),
            (self.data.shuffle != ShuffleKind::Window, "data.window_shards", window.clone()),
            (self.data.shuffle != ShuffleKind::Window, "data.window_samples", window),
            (self.data.cache.is_empty(), "data.cache_size", "there is no data.cache".into()),
            (on_disk, "data.cache", files.clone()),
            (on_disk, "data.network_retries", files.clone()),
            (on_disk, "data.network_timeout_s", files.clone()),
            (on_disk, "data.network_requests", files),
            (!self.eval.online_probe, "eval.online_lr", "eval.online_probe is false".into()),
            (cpu, "train.deterministic", on_cpu.clone()),
            (cpu, "train.cuda_graph", on_cpu),
        ];
        rules.into_iter().filter(|(unused, ..)| *unused).map(|(_, key, why)| (key, why)).collect()
    }
}

fn sentence(key: &str, why: &str) -> String {
    format!("{key} does nothing here: {why}")
}

/// The value of `a.b` in `table`.
fn at<'a>(table: &'a toml::Value, key: &str) -> Option<&'a toml::Value> {
    key.split('.').try_fold(table, |table, part| table.get(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(overrides: &[&str]) -> Vec<String> {
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        RunConfig::load(None, &overrides).unwrap().idle().unwrap()
    }

    #[test]
    fn what_is_set_and_not_read_is_named_with_the_reason() {
        assert!(idle(&[]).is_empty() && idle(&["optim.eta=0.002", "loss.lambda=0.1"]).is_empty());
        let said = idle(&["optim.optimizer=adamw", "optim.eta=0.002", "optim.momentum=0.9"]);
        assert_eq!(said, ["optim.eta does nothing here: optim.optimizer is `adamw`"]);
        let sgd = ["optim.optimizer=sgd", "optim.nesterov=true"];
        assert!(idle(&sgd).is_empty());
        let said = idle(&[sgd[0], sgd[1], "optim.momentum=0"]);
        assert_eq!(said, ["optim.nesterov does nothing here: optim.momentum is 0"]);
        let said = idle(&[sgd[0], "optim.decay_biases=false", "optim.weight_decay=0"]);
        assert_eq!(said, ["optim.decay_biases does nothing here: optim.weight_decay is 0"]);
        let bare = "model.projector_batch_norm=false";
        assert!(idle(&[bare]).is_empty());
        let said = idle(&[bare, "model.projector='64'"]);
        assert!(said[0].starts_with("model.projector_batch_norm does nothing"), "{said:?}");
        assert_eq!(idle(&["data.window_samples=9"]).len(), 1);
        assert_eq!(idle(&["data.window_samples=9", "data.shuffle=window"]).len(), 0);
        let said = idle(&["loss.temperature=0.5"]);
        assert_eq!(said, ["loss.temperature does nothing here: loss.loss is `squared`"]);
        assert!(idle(&["method=infonce", "loss.temperature=0.5"]).is_empty());
        let blur = ["views.both.gaussian_blur.p=1", "views.a.gaussian_blur.p=0"];
        assert!(idle(&blur).is_empty());
        let said = idle(&[blur[0], blur[1], "views.b.gaussian_blur.p=0.5"]);
        assert!(said[0].starts_with("views.both.gaussian_blur.p does nothing"), "{said:?}");
    }

    #[test]
    fn each_key_is_idle_beside_one_value_of_another_and_read_beside_another() {
        for (set, idle_beside, read_beside) in [
            ("optim.eta=0.002", "optim.optimizer=sgd", "optim.optimizer=lars"),
            ("optim.clip_lr=true", "optim.optimizer=adamw", "optim.optimizer=lars"),
            ("optim.momentum=0.5", "optim.optimizer=adamw", "optim.optimizer=sgd"),
            ("optim.momentum=0.5", "optim.optimizer=adamw", "optim.optimizer=lars"),
            ("optim.nesterov=true", "optim.optimizer=lars", "optim.optimizer=sgd"),
            ("optim.decay_biases=false", "optim.optimizer=lars", "optim.optimizer=sgd"),
            ("optim.decay_biases=false", "optim.optimizer=lars", "optim.optimizer=adamw"),
            ("optim.betas=[0.8, 0.9]", "optim.optimizer=sgd", "optim.optimizer=adamw"),
            ("optim.eps=1e-6", "optim.optimizer=lars", "optim.optimizer=adamw"),
            ("data.window_shards=9", "data.shuffle=global", "data.shuffle=window"),
            ("data.window_samples=9", "data.shuffle=none", "data.shuffle=window"),
            ("data.cache_size=3GB", "data.cache=''", "data={cache='shards', val='gs://bucket/a'}"),
            ("data.cache=shards", "data.train=here", "data.train='here::s3://bucket/there'"),
            ("data.network_retries=9", "data.val=here", "data.val='https://host/a.tar'"),
            ("data.network_timeout_s=9", "data.val=here", "data.val='https://host/a.tar'"),
            ("data.network_requests=9", "data.val=here", "data.val='https://host/a.tar'"),
            ("eval.online_lr=0.5", "eval.online_probe=false", "eval.online_probe=true"),
        ] {
            let (key, _) = set.split_once('=').unwrap();
            let said = idle(&[set, idle_beside]);
            assert!(said.len() == 1 && said[0].starts_with(key), "{set} {idle_beside}: {said:?}");
            assert!(idle(&[set, read_beside]).is_empty(), "{set} {read_beside}");
        }
    }

    #[test]
    fn values_of_a_transform_that_is_off_and_options_of_another_device_are_named() {
        let cifar = "views.preset=barlow-cifar";
        let said = idle(&[cifar, "views.both.gaussian_blur.sigma=[0.5, 1.0]"]);
        let why = "gaussian_blur.p is 0 in both views";
        assert_eq!(said, [format!("views.both.gaussian_blur.sigma does nothing here: {why}")]);
        // View b is solarized, and a value of its own is not that of both.
        let threshold = "views.both.random_solarize.threshold=9";
        assert!(idle(&[threshold]).is_empty());
        let said = idle(&[threshold, "views.b.random_solarize.threshold=8"]);
        let why = "random_solarize.p is 0 in view a";
        assert_eq!(
            said,
            [format!("views.both.random_solarize.threshold does nothing here: {why}")]
        );
        let said = idle(&["views.b.color_jitter={p=0, hue=0.2}"]);
        assert_eq!(
            said,
            ["views.b.color_jitter.hue does nothing here: color_jitter.p is 0 in view b"]
        );
        let exact = "views.both.color_jitter.exact_hue=true";
        assert!(idle(&[exact]).is_empty());
        for none in ["views.both.color_jitter.hue=0", "views.both.color_jitter.hue=[0, 0]"] {
            let said = idle(&[exact, none]);
            let why = "color_jitter.hue is 0 in both views";
            let key = "views.both.color_jitter.exact_hue";
            assert_eq!(said, [format!("{key} does nothing here: {why}")]);
        }
        let full = RunConfig::load(None, &[cifar.to_owned()]).unwrap().in_full().unwrap();
        assert!(full.idle().unwrap().is_empty(), "{:?}", full.idle());

        let cuda = ["train.deterministic=true", "train.cuda_graph=false"];
        let on = |device| idle(&[cuda[0], cuda[1], device]);
        assert!(on("train.device=auto").is_empty() && on("train.device=cuda:1").is_empty());
        let said = ["train.deterministic", "train.cuda_graph"]
            .map(|key| format!("{key} does nothing here: train.device is `cpu`"));
        assert_eq!(on("train.device=cpu"), said);
    }

    #[test]
    fn shipped_configurations_set_nothing_that_is_not_read() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/configs");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let idle = RunConfig::load(Some(&path), &[]).unwrap().idle().unwrap();
            assert!(idle.is_empty(), "{}: {idle:?}", path.display());
        }
    }
}
