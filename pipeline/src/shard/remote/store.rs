//! From a URL to the store that holds it and its place there. Credentials and endpoints come from
//! the environment, as `object_store` reads it (`AWS_ENDPOINT`, `GOOGLE_SERVICE_ACCOUNT`, ...).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use super::capped::Capped;
use crate::shard::{Limits, RemoteOptions};
use crate::sync::unpoisoned;
use crate::{Error, Result};

/// A million objects, of 1 KiB of XML each.
const MOST_LISTING: u64 = 1 << 30;

/// The stores that a set's URLs are in, one for each bucket or host.
pub(super) struct Stores {
    open: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
    options: RemoteOptions,
    /// Bytes that the listing of a folder may have.
    listing_bytes: u64,
}

/// One object: where it is, and how to ask for it.
#[derive(Clone)]
pub(crate) struct Target {
    /// The URL, for messages.
    pub path: PathBuf,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) location: Path,
    pub(super) options: Arc<RemoteOptions>,
}

impl Target {
    /// The URL as it was written.
    pub fn url(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

impl Stores {
    /// Stores whose listings come within `limits`.
    pub fn new(options: &RemoteOptions, limits: &Limits) -> Self {
        let listing_bytes = limits.index_bytes.min(MOST_LISTING);
        Stores { open: Mutex::default(), options: options.clone(), listing_bytes }
    }

    /// The object that `url` names; nothing is asked for yet.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is no URL, or the environment lacks what its store wants.
    pub fn target(&self, url: &str) -> Result<Target> {
        let (root, rest) = divide(url);
        let usage = |cause: String| Error::Usage(format!("{url}: {cause}"));
        let location = Path::from_url_path(rest).map_err(|e| usage(e.to_string()))?;
        let mut open = unpoisoned(self.open.lock());
        let store = match open.get(root) {
            Some(store) => Arc::clone(store),
            None => {
                let store = self.build(root).map_err(|e| usage(super::retry::words(&e)))?;
                open.insert(root.to_owned(), Arc::clone(&store));
                store
            }
        };
        Ok(Target { path: url.into(), store, location, options: Arc::new(self.options.clone()) })
    }

    /// The store at `root`. It neither repeats requests nor ends them: `retry` does, the same
    /// way for all stores.
    fn build(&self, root: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let client = ClientOptions::new()
            .with_timeout_disabled()
            .with_connect_timeout(self.options.timeout.min(Duration::from_secs(10)))
            .with_pool_max_idle_per_host(self.options.parallel)
            .with_pool_idle_timeout(Duration::from_secs(20));
        let scheme = root.split("://").next().unwrap_or("").to_ascii_lowercase();
        Ok(match scheme.as_str() {
            "http" | "https" => Arc::new(
                HttpBuilder::new()
                    .with_url(root)
                    .with_client_options(client.with_allow_http(scheme == "http"))
                    .with_http_connector(Capped(self.listing_bytes))
                    .with_retry(retry)
                    .build()?,
            ),
            "gs" => Arc::new(
                GoogleCloudStorageBuilder::from_env()
                    .with_client_options(client.with_allow_http(told("GOOGLE_ALLOW_HTTP")))
                    .with_url(root)
                    .with_retry(retry)
                    .build()?,
            ),
            "s3" | "s3a" => Arc::new(
                AmazonS3Builder::from_env()
                    .with_client_options(client.with_allow_http(told("AWS_ALLOW_HTTP")))
                    .with_url(root)
                    .with_retry(retry)
                    .build()?,
            ),
            _ => Arc::new(
                MicrosoftAzureBuilder::from_env()
                    .with_client_options(client.with_allow_http(told("AZURE_ALLOW_HTTP")))
                    .with_url(root)
                    .with_retry(retry)
                    .build()?,
            ),
        })
    }
}

/// Whether an environment variable says yes. Client options replace what `from_env` has read.
fn told(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| matches!(value.as_str(), "true" | "1" | "yes" | "on"))
}

/// `scheme://host` and what follows.
fn divide(url: &str) -> (&str, &str) {
    let host = url.find("://").map_or(0, |at| at + 3);
    let path = url[host..].find('/').map_or(url.len(), |at| host + at);
    (&url[..path], &url[path..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scheme_has_its_store_and_the_rest_is_the_place_there() {
        let stores = Stores::new(&RemoteOptions::default(), &Limits::default());
        let place = |url: &str| stores.target(url).unwrap().location.to_string();
        assert_eq!(place("http://127.0.0.1:9/a/b%20c.tar"), "a/b c.tar");
        assert_eq!(place("https://[::1]:9/a.tar"), "a.tar");
        assert_eq!(place("s3://bucket/x/a.tar"), "x/a.tar");
        assert_eq!(place("s3://bucket"), "");
        assert_eq!(stores.open.lock().unwrap().len(), 3);
        let error = stores.target("http:///a.tar").err().unwrap().to_string();
        assert!(error.starts_with("http:///a.tar: "), "{error}");
    }
}
