//! What is saved of damaged shards is whole, and what is not is named.

use std::path::{Path, PathBuf};

use bt_pipeline::shard::{
    Limits, OpenOptions, ReadScratch, Salvaged, ShardSet, index_path, index_shards, salvage, verify,
};
use bt_pipeline::synth::{self, Spec};

use crate::common::{Coding, open, write_shards};

/// One archive, member by member.
#[derive(Default)]
pub struct Archive {
    pub bytes: Vec<u8>,
}

impl Archive {
    pub fn add(&mut self, name: &str, data: &[u8], kind: u8) -> &mut Self {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// Sample `number` with members in this order: its image under `png`, its label under `cls`.
    pub fn sample(&mut self, number: u64, members: &[&str]) -> &mut Self {
        let spec = Spec { images: 100, side: 20, ..Spec::default() };
        for member in members {
            let name = format!("{number:02}.{member}");
            match *member {
                "png" => {
                    let png = synth::encode_png(&synth::draw(&spec, number).0).unwrap();
                    self.add(&name, &png, b'0')
                }
                "cls" => self.add(&name, (number % 7).to_string().as_bytes(), b'0'),
                _ => self.add(&name, b"{}", b'0'),
            };
        }
        self
    }

    pub fn samples(numbers: std::ops::Range<u64>, members: &[&str]) -> Archive {
        let mut archive = Archive::default();
        for number in numbers {
            archive.sample(number, members);
        }
        archive
    }

    /// With the end-of-archive marker.
    pub fn ended(&self) -> Vec<u8> {
        [&self.bytes[..], &[0; 1024]].concat()
    }
}

/// Where the header of a member begins.
pub fn header(bytes: &[u8], name: &str) -> usize {
    let found =
        bytes.windows(name.len() + 1).position(|part| part == [name.as_bytes(), b"\0"].concat());
    found.unwrap_or_else(|| panic!("no member {name}"))
}

pub struct Bench {
    pub folder: tempfile::TempDir,
    pub name: &'static str,
    pub limits: Limits,
}

impl Bench {
    pub fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        Bench { folder, name: "s-000000.tar", limits: Limits::default() }
    }

    pub fn shard(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }

    /// Writes the shard, its index if one is asked for, and then the damaged shard.
    pub fn write(&self, whole: &[u8], damaged: &[u8], indexed: bool) {
        let pattern = self.shard().to_string_lossy().into_owned();
        std::fs::write(self.shard(), whole).unwrap();
        let _ = std::fs::remove_file(index_path(&self.shard()));
        if indexed {
            index_shards(&pattern, None, &[], &Default::default(), 1, &mut |_| {}).unwrap();
        }
        std::fs::write(self.shard(), damaged).unwrap();
    }

    pub fn salvage(&self) -> bt_pipeline::Result<Salvaged> {
        let out = self.folder.path().join("out");
        let _ = std::fs::remove_dir_all(&out);
        let options = OpenOptions { limits: self.limits, ..OpenOptions::default() };
        salvage(&self.shard().to_string_lossy(), &out, &options, 1, &mut |_| {})
    }

    /// The numbers of the samples that are saved and of those that are named as lost. Each that is
    /// saved has its label, and the set is clean.
    pub fn outcome(&self, labelled: bool) -> (Vec<u64>, Vec<u64>, Vec<String>) {
        let saved = self.salvage().unwrap();
        let out = self.folder.path().join("out");
        let set = ShardSet::open(&out.to_string_lossy(), &OpenOptions::default()).unwrap();
        let mut numbers = Vec::new();
        for sample in 0..set.len() {
            let meta = set.meta(sample).unwrap();
            let number = meta.key.parse().unwrap();
            let label = labelled.then_some((number % 7) as u32);
            assert_eq!(meta.label, label, "sample {number}");
            set.read(sample, &mut ReadScratch::new()).unwrap();
            numbers.push(number);
        }
        let pattern = out.to_string_lossy();
        let report = verify(&pattern, &OpenOptions::default(), true, 1, &mut |_| {}).unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
        let keys = saved.lost.iter().filter_map(|lost| lost.key.as_ref());
        let mut lost: Vec<u64> = keys.map(|key| key.parse().unwrap()).collect();
        lost.sort_unstable();
        let faults = saved.lost.iter().filter(|lost| lost.key.is_none());
        (numbers, lost, faults.map(|fault| fault.cause.clone()).collect())
    }
}

pub fn all_but(count: u64, lost: &[u64]) -> Vec<u64> {
    (0..count).filter(|number| !lost.contains(number)).collect()
}

#[test]
fn a_damaged_header_costs_its_sample_alone_and_never_a_label() {
    let bench = Bench::new();
    for order in [["cls", "png"], ["png", "cls"]] {
        let whole = Archive::samples(0..10, &order).ended();
        for indexed in [false, true] {
            for member in order {
                for number in [0u64, 4, 9] {
                    let mut damaged = whole.clone();
                    let at = header(&whole, &format!("{number:02}.{member}"));
                    damaged[at] ^= 0x55;
                    bench.write(&whole, &damaged, indexed);
                    let (saved, lost, faults) = bench.outcome(true);
                    let what = format!("{order:?}, {member} of {number}, index {indexed}");
                    assert_eq!(saved, all_but(10, &[number]), "{what}: {faults:?}");
                    assert_eq!(lost, [number], "{what}");
                    assert_eq!(faults.len(), 1, "{what}: {faults:?}");
                }
            }
        }
    }
}

#[test]
fn missing_bytes_cost_the_sample_that_they_are_missing_in() {
    let bench = Bench::new();
    for order in [["cls", "png"], ["png", "cls"]] {
        let whole = Archive::samples(0..10, &order).ended();
        for indexed in [false, true] {
            // Fewer than a member has, and as many as two have.
            for missing in [100, 512, 700] {
                let at = header(&whole, "04.png") + 512;
                let mut damaged = whole.clone();
                damaged.drain(at..at + missing);
                bench.write(&whole, &damaged, indexed);
                let (saved, lost, faults) = bench.outcome(true);
                let what = format!("{order:?}, {missing} bytes, index {indexed}: {faults:?}");
                assert_eq!(saved, all_but(10, &[4]), "{what}");
                assert_eq!(lost, [4], "{what}");
            }
        }
    }
}

#[test]
fn without_an_index_unlabelled_samples_are_believed_only_before_damage() {
    let bench = Bench::new();
    let whole = Archive::samples(0..8, &["png"]).ended();
    let mut damaged = whole.clone();
    damaged[header(&whole, "04.png")] ^= 1;
    bench.write(&whole, &damaged, false);
    let (saved, lost, _) = bench.outcome(false);
    // Nothing tells of sample 4, and that 5 never had a label.
    assert_eq!((saved, lost), (all_but(8, &[4, 5]), vec![5]));
    bench.write(&whole, &damaged, true);
    let (saved, lost, _) = bench.outcome(false);
    assert_eq!((saved, lost), (all_but(8, &[4]), vec![4]));
    // Where some samples have a label, one without is not believed either.
    let mut mixed = Archive::samples(0..4, &["png"]);
    for number in 4..8 {
        mixed.sample(number, &["png", "cls"]);
    }
    let (whole, mut damaged) = (mixed.ended(), mixed.ended());
    damaged[header(&whole, "06.cls")] ^= 1;
    bench.write(&whole, &damaged, false);
    assert_eq!(bench.salvage().unwrap().packed.manifest.unlabelled, 4);
}

#[test]
fn a_shard_that_is_cut_short_between_members_loses_the_sample_that_is_cut() {
    let bench = Bench::new();
    for (order, kept) in [(["cls", "png"], "png"), (["png", "cls"], "cls")] {
        let whole = Archive::samples(0..6, &order).ended();
        // In front of the last member of sample 5, then behind all of it.
        let cut = &whole[..header(&whole, &format!("05.{kept}"))];
        bench.write(&whole, cut, false);
        let (saved, lost, _) = bench.outcome(true);
        assert_eq!((saved, lost), (all_but(6, &[5]), vec![5]), "{order:?}");
        bench.write(&whole, &whole[..whole.len() - 1024], false);
        let (saved, lost, faults) = bench.outcome(true);
        assert_eq!((saved, lost), (all_but(6, &[]), vec![]), "{order:?}");
        assert!(faults.len() == 1 && faults[0].contains("cut short"), "{faults:?}");
        // Within the image of sample 5.
        bench.write(&whole, &whole[..header(&whole, "05.png") + 600], true);
        let (saved, lost, faults) = bench.outcome(true);
        assert_eq!((saved, lost, faults.len()), (all_but(6, &[5]), vec![5], 1), "{order:?}");
    }
}

#[test]
fn zeros_do_not_end_what_is_saved() {
    let bench = Bench::new();
    let order = ["cls", "png"];
    for (name, data, kind) in
        [("folder/", &b""[..], b'5'), ("README", b"read me", b'0'), ("x", b"9 path=a\n", b'x')]
    {
        let mut archive = Archive::samples(0..3, &order);
        archive.add(name, data, kind);
        let hole = archive.bytes.len();
        archive.bytes.resize(hole + 2048, 0);
        for number in 3..6 {
            archive.sample(number, &order);
        }
        bench.write(&archive.ended(), &archive.ended(), false);
        let (saved, lost, faults) = bench.outcome(true);
        assert_eq!((saved, lost), (all_but(6, &[]), vec![]), "{name}");
        assert_eq!(faults, ["more follows where the archive seems to end"], "{name}");
    }
    // A header of zeros, more than a sample, and the first sample; the index tells which are gone.
    let whole = Archive::samples(0..8, &order).ended();
    let (from, to) = (header(&whole, "02.cls"), header(&whole, "03.png"));
    let second = header(&whole, "01.cls");
    for (from, to, gone) in
        [(from, from + 512, vec![2]), (from, to, vec![2, 3]), (0, second, vec![0])]
    {
        let mut damaged = whole.clone();
        damaged[from..to].fill(0);
        bench.write(&whole, &damaged, true);
        let (saved, lost, faults) = bench.outcome(true);
        assert_eq!((saved, lost), (all_but(8, &gone), gone.clone()));
        assert_eq!(faults.len(), 1, "{faults:?}");
    }
    // Two archives in one file.
    let two = [Archive::samples(0..4, &order).ended(), Archive::samples(4..8, &order).ended()];
    bench.write(&two.concat(), &two.concat(), false);
    let (saved, lost, faults) = bench.outcome(true);
    assert_eq!((saved, lost, faults.len()), (all_but(8, &[]), vec![], 1));
    // Nothing but noise.
    bench.write(&whole, &[0xA5; 4096], false);
    assert!(bench.salvage().unwrap_err().to_string().contains("no tar header"));
}

#[test]
fn an_archive_inside_a_lost_sample_gives_no_samples() {
    let bench = Bench::new();
    let inner = Archive::samples(50..53, &["cls", "png"]).ended();
    let mut archive = Archive::samples(0..3, &["cls", "png"]);
    archive.sample(3, &["cls", "png"]).add("03.tar", &inner, b'0');
    archive.sample(4, &["cls", "png"]).sample(5, &["cls", "png"]);
    let whole = archive.ended();
    let mut damaged = whole.clone();
    damaged[header(&whole, "04.cls")] ^= 1;
    bench.write(&whole, &damaged, false);
    let (saved, lost, _) = bench.outcome(true);
    assert_eq!((saved, lost), (all_but(6, &[3, 4]), vec![3, 4]));
}

#[test]
fn a_sample_on_both_sides_of_damage_is_lost() {
    let bench = Bench::new();
    let order = ["cls", "png"];
    let mut archive = Archive::samples(0..3, &order);
    archive.sample(3, &["cls", "png", "json", "txt"]).sample(4, &order).sample(5, &order);
    let whole = archive.ended();
    let mut damaged = whole.clone();
    damaged[header(&whole, "03.json")] ^= 1;
    bench.write(&whole, &damaged, false);
    let (saved, lost, faults) = bench.outcome(true);
    assert_eq!((saved, lost, faults.len()), (all_but(6, &[3]), vec![3], 1));
}

#[test]
fn whatever_is_damaged_what_is_saved_is_whole_and_what_is_lost_is_told() {
    let bench = Bench::new();
    let mut state = 7u32;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((u64::from(state) * below as u64) >> 32) as usize
    };
    let (mut some, mut least) = (0, 6);
    for round in 0..160 {
        let order = if round % 2 == 0 { ["cls", "png"] } else { ["png", "cls"] };
        let whole = Archive::samples(0..6, &order).ended();
        // A label that is changed in place can be told by nobody.
        let labels: Vec<usize> =
            (0..6).map(|i| header(&whole, &format!("{i:02}.cls")) + 512).collect();
        let mut damaged = whole.clone();
        let at = draw(whole.len() - 2048);
        // Not whole members: what is cut out without a seam is missed only by an index.
        let length = 1 + draw(2000) / 512 * 512 + draw(500);
        match draw(5) {
            0 if !labels.contains(&at) => damaged[at] ^= 1 << draw(8),
            0 => continue,
            1 => damaged[at..at + length].fill(0),
            2 => drop(damaged.drain(at..at + length)),
            3 => drop(damaged.splice(at..at, (0..length).map(|_| 0xA5))),
            _ => damaged.truncate(at),
        }
        bench.write(&whole, &damaged, round % 3 == 0);
        if bench.salvage().is_err() {
            least = 0;
            continue;
        }
        let (saved, lost, faults) = bench.outcome(true);
        assert!(saved.is_sorted() && saved.len() <= 6, "round {round}: {saved:?}");
        let told = !lost.is_empty() || !faults.is_empty();
        assert!(told || saved.len() == 6, "round {round} at {at}: {saved:?}");
        assert!(saved.len() + 3 >= 6 || damaged.len() < whole.len(), "round {round}: {saved:?}");
        (some, least) = (some + saved.len(), least.min(saved.len()));
    }
    assert!(some > 400 && least < 6, "{some} {least}");
}

#[test]
fn a_label_that_was_cut_out_without_a_seam_is_missed_by_an_index() {
    let bench = Bench::new();
    let whole = Archive::samples(0..6, &["png", "cls"]).ended();
    let (at, mut damaged) = (header(&whole, "02.cls"), whole.clone());
    damaged.drain(at..at + 1024);
    bench.write(&whole, &damaged, true);
    let (saved, lost, _) = bench.outcome(true);
    assert_eq!((saved, lost), (all_but(6, &[2]), vec![2]));
}

#[test]
fn what_would_spoil_the_clean_set_is_left_out_of_it() {
    let bench = Bench::new();
    let order = ["png", "cls"];
    let png = synth::encode_png(&synth::draw(&Spec { side: 20, ..Spec::default() }, 1).0).unwrap();
    // A key that comes again behind a sample that is lost.
    let mut archive = Archive::samples(0..3, &order);
    archive.add("03.png", &png[..99], b'0').add("03.cls", b"3", b'0').sample(2, &order);
    // A header for all members that follow, which names what has no name of its own.
    archive.add("g", b"15 path=50.png\n", b'g').sample(4, &order);
    archive.add("g", b"8 path=\n", b'g').sample(5, &order);
    bench.write(&archive.ended(), &archive.ended(), false);
    let (saved, lost, faults) = bench.outcome(true);
    assert_eq!((saved, lost), (vec![0, 1, 2, 5], vec![2, 3, 50]), "{faults:?}");
}

#[test]
fn an_index_tells_a_label_that_changed() {
    let bench = Bench::new();
    let whole = Archive::samples(0..30, &["cls", "png"]).ended();
    let mut damaged = whole.clone();
    // Where the fingerprint of the index does not look.
    let at = header(&whole, "10.cls") + 512;
    assert_eq!(damaged[at], b'3');
    damaged[at] = b'5';
    bench.write(&whole, &damaged, true);
    let (saved, lost, faults) = bench.outcome(true);
    assert_eq!((saved, lost, faults.len()), (all_but(30, &[10]), vec![10], 0));
}

#[test]
fn the_set_that_is_saved_goes_where_it_is_told() {
    let bench = Bench::new();
    let whole = Archive::samples(0..3, &["png", "cls"]).ended();
    bench.write(&whole, &whole, false);
    let saved = bench.salvage().unwrap();
    let expected: &Path = &bench.folder.path().join("out/s.manifest.json");
    assert_eq!((saved.packed.manifest_path.as_path(), saved.lost.len()), (expected, 0));
}

/// Keys of a set, in order.
fn keys(folder: &Path) -> Vec<String> {
    let set = open(folder);
    (0..set.len()).map(|sample| set.meta(sample).unwrap().key).collect()
}

/// The samples of `folder` that are named as lost, and the offsets of faults that name none.
fn lost(saved: &Salvaged, shards: &Path) -> (Vec<String>, Vec<(String, u64)>) {
    let name = |path: &Path| path.strip_prefix(shards).unwrap().to_str().unwrap().to_owned();
    let mut keys: Vec<_> = saved.lost.iter().filter_map(|lost| lost.key.clone()).collect();
    keys.sort();
    let faults = saved.lost.iter().filter(|lost| lost.key.is_none());
    (keys, faults.map(|fault| (name(&fault.shard), fault.offset)).collect())
}

#[test]
fn what_is_whole_in_damaged_shards_is_saved_into_a_clean_set() {
    for coding in [Coding::Tar, Coding::LabelFirst] {
        let folder = tempfile::tempdir().unwrap();
        let (shards, out) = (folder.path().join("shards"), folder.path().join("out"));
        std::fs::create_dir(&shards).unwrap();
        // Sample 3 holds half an image.
        write_shards(&shards, &[10, 10, 10], coding, &[3]);
        let all: Vec<String> = (0..30).map(|sample| format!("{sample:06}")).collect();
        assert_eq!(keys(&shards), all);
        let before = open(&shards);
        let labels: Vec<_> = (0..30).map(|sample| before.label(sample).unwrap()).collect();
        drop(before);
        let edit = |name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
            let path = shards.join(name);
            std::fs::write(&path, change(std::fs::read(&path).unwrap())).unwrap();
        };
        // 700 bytes are missing after the header of sample 14's image, so that all
        // that follows stands elsewhere; the last shard ends within sample 27.
        let path = shards.join("part-000001.tar");
        let bytes = std::fs::read(&path).unwrap();
        let image = header(&bytes, "000014.png");
        let size = std::str::from_utf8(&bytes[image + 124..image + 135]).unwrap();
        // Where the header behind the image is looked for.
        let hole = image + 512 + usize::from_str_radix(size, 8).unwrap().next_multiple_of(512);
        edit("part-000001.tar", &|mut bytes| {
            bytes.drain(image + 512..image + 1212);
            bytes
        });
        let last = std::fs::read(shards.join("part-000002.tar")).unwrap();
        let end = header(&last, "000027.png") + 600;
        edit("part-000002.tar", &|mut bytes| {
            bytes.truncate(end);
            bytes
        });
        let pattern = shards.to_str().unwrap();
        let options = Default::default();
        let saved = salvage(pattern, &out, &options, 2, &mut |_| {}).unwrap();
        let gone = [3usize, 14, 27, 28, 29];
        let kept: Vec<usize> = (0..30).filter(|sample| !gone.contains(sample)).collect();
        assert_eq!(keys(&out), kept.iter().map(|&i| all[i].clone()).collect::<Vec<_>>());
        let set = open(&out);
        for (place, &sample) in kept.iter().enumerate() {
            assert_eq!(set.label(place).unwrap(), labels[sample], "sample {sample}");
        }
        // Of 28 and 29 nothing is left that has a name.
        let (named, faults) = lost(&saved, &shards);
        assert_eq!(named, ["000003", "000014", "000027"], "{:?}", saved.lost);
        let expected = [("part-000001.tar", hole), ("part-000002.tar", end)];
        let expected = expected.map(|(name, at)| (name.to_owned(), at as u64));
        assert_eq!(faults, expected, "{:?}", saved.lost);
        let report = verify(out.to_str().unwrap(), &options, true, 1, &mut |_| {}).unwrap();
        assert!(report.damage.is_empty() && report.indexed > 0, "{:?}", report.damage);
    }
}
