//! From what a person writes to shard files: folders, globs, brace lists,
//! manifests, and unions of them. First step of `set`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::manifest::{MANIFEST_SUFFIX, Manifest, ManifestShard};
use super::map::special;
use super::source::image_below;
use super::staging::Unfinished;
use super::union::{is_url, split_union};
use super::{Limits, RemoteOptions, damaged, remote};
use crate::{Error, Result};

mod braces;
mod listed;
mod names;

pub(super) use braces::expand_braces;
pub(crate) use listed::{check_listed_once, warn_of_unlisted};
use names::ClassNames;
pub(crate) use names::{NamesOf, names_of};

/// A shard file and what a manifest says of it.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Its file, or its URL.
    pub path: PathBuf,
    pub known: Option<ManifestShard>,
    /// What a listing of its folder said of an object.
    pub listed: Option<remote::Identity>,
}

impl Found {
    /// Of which nothing is known.
    pub fn at(path: PathBuf) -> Found {
        Found { path, known: None, listed: None }
    }
}

/// The shards of a pattern, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resolved {
    pub shards: Vec<Found>,
    /// Of the manifests, where all shards come from manifests that agree.
    pub classes: Vec<String>,
    /// The manifests of files that were read, each once.
    pub manifests: Vec<(PathBuf, Manifest)>,
    /// How the first two that do not agree name a class.
    differing: Option<String>,
}

impl Resolved {
    /// Says, where manifests do not agree on the classes, that labels are merged all the same.
    pub fn warn_of_names(&self) {
        if let Some(differing) = &self.differing {
            tracing::warn!(
                "{differing}: labels are merged by number, and the classes have no names"
            );
        }
    }
}

/// Finds the shards of `pattern`, all of them files; see [`super::ShardSet::open`].
pub(crate) fn resolve(pattern: &str, use_manifest: bool, limits: &Limits) -> Result<Resolved> {
    if let Some(url) = parts(pattern).into_iter().find(|part| is_url(part)) {
        let reads = if cfg!(feature = "remote") {
            " (`shard pack` and `shard unpack` read URLs)"
        } else {
            ""
        };
        let text = format!("{url}: this works on files; download the shards first{reads}");
        return Err(Error::Usage(text));
    }
    find(pattern, use_manifest, limits, &RemoteOptions::default())
}

/// As [`resolve`], files and URLs, for samples that are to be read as one set.
pub(crate) fn resolve_anywhere(
    pattern: &str,
    use_manifest: bool,
    limits: &Limits,
    options: &RemoteOptions,
) -> Result<Resolved> {
    find(pattern, use_manifest, limits, options).inspect(Resolved::warn_of_names)
}

fn find(
    pattern: &str,
    use_manifest: bool,
    limits: &Limits,
    options: &RemoteOptions,
) -> Result<Resolved> {
    let mut finder = Finder {
        use_manifest,
        limits,
        unfinished: Unfinished::default(),
        manifests: HashMap::new(),
        read: Vec::new(),
        names: ClassNames::default(),
        options,
        lister: None,
    };
    let mut shards = Vec::new();
    for part in parts(pattern) {
        finder.part(part, &mut shards)?;
    }
    if shards.is_empty() {
        return Err(Error::Usage(format!("no shards match `{}`", pattern.trim())));
    }
    let (classes, differing) = finder.names.finish();
    Ok(Resolved { shards, classes, manifests: finder.read, differing })
}

/// The members of a union. Whitespace separates, except in what names
/// something as it stands: paths may have spaces.
pub(crate) fn parts(pattern: &str) -> Vec<&str> {
    let pattern = pattern.trim();
    if Path::new(pattern).exists() {
        return vec![pattern];
    }
    let list = split_union(pattern).into_iter().flat_map(|part| {
        let part = part.trim();
        if is_url(part) {
            // URLs have no spaces.
            part.split_whitespace().collect()
        } else if names_something(part) {
            vec![part]
        } else {
            part.split_whitespace().collect()
        }
    });
    list.filter(|part| !part.is_empty()).collect()
}

fn names_something(part: &str) -> bool {
    let exists = |name: &String| {
        Path::new(name).exists()
            || glob::glob(name).is_ok_and(|mut paths| paths.next().is_some_and(|path| path.is_ok()))
    };
    expand_braces(part).is_ok_and(|names| names.first().is_some_and(exists))
}

struct Finder<'a> {
    use_manifest: bool,
    limits: &'a Limits,
    /// Sets that would be read half.
    unfinished: Unfinished,
    /// What manifests say, by folder and shard name.
    manifests: HashMap<PathBuf, HashMap<String, (ManifestShard, NamesOf)>>,
    /// All of them.
    read: Vec<(PathBuf, Manifest)>,
    names: ClassNames,
    options: &'a RemoteOptions,
    /// For URLs, once there is one.
    lister: Option<remote::Lister>,
}

/// Why there is no file of this name: it may be meant as what others read shards from.
fn other_scheme(name: &str, error: std::io::Error) -> Error {
    if name.starts_with("pipe:") {
        return Error::Usage(format!(
            "{name}: no commands are run to read shards: name files or URLs"
        ));
    }
    match name.split_once("://") {
        Some((scheme, path)) => Error::Usage(format!(
            "{name}: shards are not read from `{scheme}://`, but from files{} and from s3, gs, az, http and https",
            if scheme == "file" { format!(" (`{path}`)") } else { String::new() }
        )),
        None => Error::io(name, error),
    }
}

impl Finder<'_> {
    fn part(&mut self, part: &str, out: &mut Vec<Found>) -> Result<()> {
        if is_url(part) {
            return self.urls(part, out);
        }
        let path = Path::new(part);
        if path.is_dir() {
            return self.folder(path, out);
        }
        if path.is_file() {
            return self.file(path, out);
        }
        for name in expand_braces(part)? {
            if Path::new(&name).is_file() {
                self.file(Path::new(&name), out)?;
            } else if Path::new(&name).is_dir() {
                self.folder(Path::new(&name), out)?;
            } else if name.contains(['*', '?', '[']) {
                self.glob(&name, out)?;
            } else {
                self.refuse_unfinished(Path::new(&name))?;
                let found = std::fs::metadata(&name).map_err(|e| other_scheme(&name, e))?;
                let kind = special(found.file_type());
                return Err(Error::Usage(format!("{name}: {kind}, neither a file nor a folder")));
            }
        }
        Ok(())
    }

    fn urls(&mut self, part: &str, out: &mut Vec<Found>) -> Result<()> {
        let (options, limits) = (self.options, self.limits);
        for url in expand_braces(part)? {
            let lister = self.lister.get_or_insert_with(|| remote::Lister::new(options, limits));
            for (found, classes) in lister.find(&url, self.use_manifest)? {
                self.names.agree(&classes, &found.path);
                out.push(found);
            }
        }
        Ok(())
    }

    fn glob(&mut self, pattern: &str, out: &mut Vec<Found>) -> Result<()> {
        let bad = |e: glob::PatternError| Error::Usage(format!("`{pattern}` is not a glob: {e}"));
        let before = out.len();
        for path in glob::glob(pattern).map_err(bad)? {
            let path = path.map_err(|e| {
                Error::io(e.path().to_owned(), std::io::Error::from(e.error().kind()))
            })?;
            // A glob such as `train-*` matches indexes and manifests as well.
            if is_shard_name(&path) && !path.is_dir() {
                self.shard(path, out)?;
            }
        }
        if out.len() == before {
            // Perhaps they are on their way.
            self.unfinished.refuse(Path::new(pattern).parent().unwrap_or(Path::new("")), None)?;
            return Err(Error::Usage(format!("no shards (.tar, .tar.zst) match `{pattern}`")));
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, out: &mut Vec<Found>) -> Result<()> {
        if path.extension().is_some_and(|extension| extension == "json") {
            self.refuse_unfinished(path)?;
            let manifest = Manifest::read(path, self.limits)?.ok_or_else(|| {
                damaged(path, 0, format!("not a manifest (`*.{MANIFEST_SUFFIX}`) of a shard set"))
            })?;
            return self.manifest(path, manifest, out);
        }
        self.shard(path.to_owned(), out)
    }

    /// Every set in a folder: what its manifests list, or else its shards by name.
    fn folder(&mut self, folder: &Path, out: &mut Vec<Found>) -> Result<()> {
        self.unfinished.refuse(folder, None)?;
        let shards: Vec<_> =
            files_in(folder)?.into_iter().filter(|path| is_shard_name(path)).collect();
        let manifests =
            if self.use_manifest { Manifest::all_in(folder, self.limits)? } else { Vec::new() };
        let (before, sets) = (out.len(), manifests.len());
        for (path, manifest) in manifests {
            self.manifest(&path, manifest, out)?;
        }
        check_listed_once(folder, &out[before..])?;
        if sets > 1 {
            tracing::warn!("{} holds {sets} shard sets; reading all of them", folder.display());
        }
        if out.len() > before {
            warn_of_unlisted(folder, shards.iter().map(PathBuf::as_path), &out[before..]);
            return Ok(());
        }
        for path in shards {
            self.shard(path, out)?;
        }
        if out.len() == before {
            let text = format!("{}: no shards (.tar, .tar.zst) in this folder", folder.display());
            let hint = match image_below(folder) {
                Some(_) => "; there are images: pack them first with `shard pack`",
                None => "",
            };
            return Err(Error::Usage(text + hint));
        }
        Ok(())
    }

    fn manifest(&mut self, path: &Path, manifest: Manifest, out: &mut Vec<Found>) -> Result<()> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let names = names_of(&manifest);
        self.keep(path, &manifest);
        for shard in manifest.shards {
            self.names.agree(&names, path);
            let path = folder.join(&shard.name);
            out.push(Found { known: Some(shard), ..Found::at(path) });
        }
        Ok(())
    }

    /// A shard by name, with what a manifest beside it says.
    fn shard(&mut self, path: PathBuf, out: &mut Vec<Found>) -> Result<()> {
        self.refuse_unfinished(&path)?;
        if !self.use_manifest {
            out.push(Found::at(path));
            return Ok(());
        }
        let folder =
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !self.manifests.contains_key(folder) {
            let mut known = HashMap::new();
            // As the shards are named: without a folder where they have none.
            let named = path.parent().unwrap_or(Path::new(""));
            for (file, manifest) in Manifest::all_in(folder, self.limits)? {
                let names = names_of(&manifest);
                self.keep(&named.join(file.file_name().unwrap_or_default()), &manifest);
                known.extend(
                    manifest
                        .shards
                        .into_iter()
                        .map(|shard| (shard.name.clone(), (shard, names.clone()))),
                );
            }
            self.manifests.insert(folder.to_owned(), known);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = self.manifests.get(folder).and_then(|known| known.get(&name)).cloned();
        let (known, names) =
            known.map_or((None, Some([].into())), |(shard, names)| (Some(shard), names));
        self.names.agree(&names, &path);
        out.push(Found { known, ..Found::at(path) });
        Ok(())
    }

    /// Refuses a shard or manifest of a set that is not in place altogether.
    fn refuse_unfinished(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.unfinished.refuse(path.parent().unwrap_or(Path::new("")), Some(&name))
    }

    fn keep(&mut self, path: &Path, manifest: &Manifest) {
        if !self.read.iter().any(|(known, _)| known == path) {
            self.read.push((path.to_owned(), manifest.clone()));
        }
    }
}

/// Whether a file name is that of a shard.
pub(crate) fn is_shard_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    (name.ends_with(".tar") || name.ends_with(".tar.zst")) && !name.starts_with('.')
}

/// Whether a file name is that of a manifest, as folders are searched for them.
pub(crate) fn is_manifest_name(name: &str) -> bool {
    let prefix = name.strip_suffix(MANIFEST_SUFFIX);
    prefix.is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        && !name.starts_with('.')
}

/// What is in a folder but folders, sorted by name. A link that leads nowhere and what is no file
/// count, too: a shard that is not there is an error of opening it, not one less.
pub(crate) fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_known_by_their_names() {
        for (name, is) in [
            ("manifest.json", true),
            ("x.manifest.json", true),
            ("x.y.manifest.json", true),
            ("xmanifest.json", false),
            (".x.manifest.json", false),
            (".manifest.json", false),
            ("x.json", false),
        ] {
            assert_eq!(is_manifest_name(name), is, "{name}");
        }
    }

    #[test]
    fn what_others_read_shards_from_is_told_apart_from_a_file_that_is_missing() {
        let error = |pattern: &str| resolve(pattern, true, &Limits::default()).err().unwrap();
        for (pattern, part) in [
            ("ftp://host/a.tar", "not read from `ftp://`"),
            ("file:///data/a.tar", "(`/data/a.tar`)"),
            ("pipe:cat", "no commands are run"),
        ] {
            let error = error(pattern);
            assert!(matches!(&error, Error::Usage(text) if text.contains(part)), "{error}");
        }
        assert!(matches!(error("nowhere/a.tar"), Error::Io { .. }));
    }
}
