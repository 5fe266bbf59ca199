//! Folders, globs and manifests behind URLs, as `pattern` has them on disk.

use std::collections::HashMap;
use std::path::Path;

use super::fetch::{self, Identity};
use super::net::{given_up, wait};
use super::retry::{Failure, Tries};
use super::store::{Stores, Target};
use super::url::{Names, beside, escaped, file_name, names};
use crate::shard::manifest::{MANIFEST_SUFFIX, Manifest};
use crate::shard::pattern::{
    Found, NamesOf, check_listed_once, is_manifest_name, is_shard_name, names_of, warn_of_unlisted,
};
use crate::shard::{Limits, RemoteOptions};
use crate::{Error, Result};

/// More objects in a folder than this are a slip of the pen.
const MOST: usize = 1_000_000;
/// A listing may take as long as so many answers: it comes in pages.
const PAGES: u32 = 10;

/// Finds shards behind URLs.
pub(crate) struct Lister {
    stores: Stores,
    limits: Limits,
}

/// Shards with the class names that their manifest gives them.
pub(crate) type Listed = Vec<(Found, NamesOf)>;

impl Lister {
    /// One for the URLs of a pattern.
    pub fn new(options: &RemoteOptions, limits: &Limits) -> Self {
        Lister { stores: Stores::new(options, limits), limits: *limits }
    }

    /// The shards that `url`, without braces, stands for.
    ///
    /// # Errors
    /// [`Error::Usage`] when there are none or the server cannot list; those of reading.
    pub fn find(&self, url: &str, use_manifest: bool) -> Result<Listed> {
        match names(url)? {
            Names::Shard => Ok(vec![(Found::at(url.into()), Some([].into()))]),
            Names::Manifest => self.manifest(url),
            Names::Glob => self.glob(url),
            Names::Folder => self.folder(url, use_manifest),
        }
    }

    fn manifest(&self, url: &str) -> Result<Listed> {
        let target = self.stores.target(url)?;
        let text = block(&target, fetch::whole(&target, self.limits.index_bytes.min(1 << 30)))?;
        let manifest = Manifest::parse(&text, &target.path)?.ok_or_else(|| {
            let cause = format!("not a manifest (`*.{MANIFEST_SUFFIX}`) of a shard set");
            crate::shard::damaged(&target.path, 0, cause)
        })?;
        let names = names_of(&manifest);
        let found = |shard: crate::shard::ManifestShard| {
            let path = beside(url, &shard.name).into();
            (Found { known: Some(shard), ..Found::at(path) }, names.clone())
        };
        Ok(manifest.shards.into_iter().map(found).collect())
    }

    /// What the manifests in a folder list, or else its shards by name.
    fn folder(&self, url: &str, use_manifest: bool) -> Result<Listed> {
        let folder = url.trim_end_matches('/');
        let objects = self.list(&format!("{folder}/"))?;
        let mut found: Listed = Vec::new();
        for (object, _) in objects.iter().filter(|(url, _)| is_manifest_name(file_name(url))) {
            if use_manifest {
                found.extend(self.manifest(object)?);
            }
        }
        let listed: HashMap<&Path, &Identity> =
            objects.iter().map(|(url, identity)| (Path::new(url), identity)).collect();
        for (shard, _) in &mut found {
            shard.listed = listed.get(&*shard.path).map(|&identity| identity.clone());
        }
        if found.is_empty() {
            found = shards(objects);
        } else {
            let listed: Vec<Found> = found.iter().map(|(shard, _)| shard.clone()).collect();
            check_listed_once(Path::new(folder), &listed)?;
            let names = objects.iter().map(|(url, _)| Path::new(url));
            let shards = names.filter(|name| is_shard_name(name));
            warn_of_unlisted(Path::new(folder), shards, &listed);
        }
        if found.is_empty() {
            let hint = if is_http(url) {
                format!("; {}", hint(&format!("{folder}/")))
            } else {
                String::new()
            };
            let text = format!("{url}: no shards (.tar, .tar.zst) in this folder{hint}");
            return Err(Error::Usage(text));
        }
        Ok(found)
    }

    fn glob(&self, url: &str) -> Result<Listed> {
        let folder = &url[..url.find(['*', '?', '[']).unwrap_or(url.len())];
        let folder = &folder[..folder.rfind('/').map_or(0, |slash| slash + 1)];
        let bad = |e: glob::PatternError| Error::Usage(format!("`{url}` is not a glob: {e}"));
        let pattern = glob::Pattern::new(url).map_err(bad)?;
        let options =
            glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
        let mut objects = self.list(folder)?;
        objects.retain(|(url, _)| pattern.matches_with(url, options));
        let found = shards(objects);
        if found.is_empty() {
            return Err(Error::Usage(format!("no shards (.tar, .tar.zst) match `{url}`")));
        }
        Ok(found)
    }

    /// All objects right below `folder`, which ends with a slash, by name.
    fn list(&self, folder: &str) -> Result<Vec<(String, Identity)>> {
        let target = self.stores.target(folder)?;
        let listed = block(&target, list(&target)).map_err(|error| match error {
            Error::Io { path, source } if is_http(folder) => {
                let text = format!("{}; the server says: {source}", hint(folder));
                Error::io(path, std::io::Error::new(source.kind(), text))
            }
            other => other,
        })?;
        let mut objects: Vec<_> = listed
            .into_iter()
            .map(|(name, identity)| (format!("{folder}{}", escaped(&name)), identity))
            .collect();
        objects.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(objects)
    }
}

fn is_http(url: &str) -> bool {
    url.get(..4).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http"))
}

/// What to do where a server does not list.
fn hint(folder: &str) -> String {
    format!(
        "few HTTP servers list folders (it takes WebDAV): name the shards \
         (`{folder}train-{{000000..000009}}.tar`) or their manifest"
    )
}

fn shards(objects: Vec<(String, Identity)>) -> Listed {
    let shards = objects.into_iter().filter(|(url, _)| is_shard_name(Path::new(url)));
    let found = |(url, identity): (String, Identity)| {
        (Found { listed: Some(identity), ..Found::at(url.into()) }, Some([].into()))
    };
    shards.map(found).collect()
}

fn block<T>(target: &Target, request: impl Future<Output = Result<T>>) -> Result<T> {
    wait(request)?.unwrap_or_else(|| Err(given_up(&target.path)))
}

async fn list(target: &Target) -> Result<Vec<(String, Identity)>> {
    let mut tries = Tries::new(target);
    loop {
        let failure = match list_once(target).await {
            Ok(objects) => return Ok(objects),
            Err(failure) => failure,
        };
        if let Err(failure) = tries.again(target, failure).await {
            return Err(failure.into_error(target, 0, tries.failed()));
        }
    }
}

/// Name and state of each object.
async fn list_once(target: &Target) -> Result<Vec<(String, Identity)>, Failure> {
    let limit = target.options.timeout;
    let listing = target.store.list_with_delimiter(Some(&target.location));
    let listing = tokio::time::timeout(limit * PAGES, listing).await;
    let slow = |_| Failure::Passing("the server took too long to list a folder".to_owned());
    let objects = listing.map_err(slow)?.map_err(|e| Failure::of(&e))?.objects;
    if objects.len() > MOST {
        return Err(Failure::Wrong(format!("a folder of more than {MOST} objects")));
    }
    let named = |meta: &object_store::ObjectMeta| {
        Some((meta.location.filename()?.to_owned(), Identity::of(meta)))
    };
    Ok(objects.iter().filter_map(named).collect())
}
