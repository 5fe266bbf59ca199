"""python -m unittest discover tools/python/tests, with bt_stream installed, cargo, and torch or not.

The shards are drawn by `shard synth`; `pipeline/examples/batches.rs` says what the bytes are to be.
"""

import contextlib
import copy
import functools
import gc
import http.server
import io
import itertools
import json
import os
import pathlib
import pickle
import re
import select
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
import unittest
import unittest.mock

import numpy as np

import bt_stream

ROOT = pathlib.Path(__file__).resolve().parents[3]
BATCH = 16


def cargo(*arguments):
    command = ["cargo", "run", "-q", "--release", "--locked", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files by HTTP, whole or in parts; nothing while the server stalls, 403 while it refuses."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.answers.wait(20)
        if self.server.refuses:
            return self.send_error(403)
        path = self.translate_path(self.path)
        if not os.path.isfile(path):
            return self.send_error(404)
        data = pathlib.Path(path).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = 0, len(data) - 1
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or last), last)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", f'"{len(data):x}"')
        self.end_headers()
        self.server.sent += (last + 1 - first) * path.endswith(".tar")
        # A loader that ends drops what it asked for ahead.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[first:last + 1])

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Connections of a loader, or of a process, that ends are cut."""


class LoaderTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.shards = os.path.join(cls.folder.name, "shards")
        cargo("-p", "shard", "--", "synth", cls.shards, "--images", "70", "--samples-per-shard", "40")
        cls.bytes = sum(path.stat().st_size for path in pathlib.Path(cls.shards).glob("*.tar"))

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def loader(self, shards=None, **settings):
        settings = {"preset": "barlow-cifar", "batch_size": BATCH, "threads": 2, "seed": 5, **settings}
        return bt_stream.Loader(shards or self.shards, **settings)

    def batches(self, loader, count):
        """Copies of the first so many batches, across epochs."""
        epochs = itertools.chain.from_iterable(itertools.repeat(loader))
        return [tuple(np.copy(view) for view in batch) for batch in itertools.islice(epochs, count)]

    def wait_for_files(self, cache):
        """Until the shards are in the cache, which a running loader fills in the background."""
        until = time.monotonic() + 60
        while sum(path.stat().st_size for path in pathlib.Path(cache).glob("[!.]*.tar")) < self.bytes:
            self.assertLess(time.monotonic(), until, os.listdir(cache))
            time.sleep(0.05)

    @contextlib.contextmanager
    def served(self):
        """A server of the shards, and their URL."""
        handler = functools.partial(Ranges, directory=self.shards)
        with Server(("127.0.0.1", 0), handler) as server:
            server.answers, server.refuses, server.sent = threading.Event(), False, 0
            server.answers.set()
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server, f"http://127.0.0.1:{server.server_port}/train-{{000000..000001}}.tar"
            server.answers.set()
            server.shutdown()

    @contextlib.contextmanager
    def interrupted(self):
        """Its body is to be ended by a Ctrl-C that comes soon."""
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        start = time.monotonic()
        timer.start()
        try:
            with self.assertRaises(KeyboardInterrupt):
                yield
        finally:
            timer.cancel()
        self.assertLess(time.monotonic() - start, 5)

    def in_a_child(self, body):
        """What `body` gives in a forked child, or its error, as text."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                text = str(body())
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            os.write(writer, text.encode())
            os._exit(0)
        os.close(writer)
        try:
            self.assertTrue(select.select([reader], [], [], 30)[0], "the child hangs")
            return os.read(reader, 1 << 16).decode()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)

    def assert_same(self, some, others):
        self.assertEqual(len(some), len(others))
        for one, other in zip(some, others):
            for view, same in zip(one, other):
                np.testing.assert_array_equal(view, same)

    def test_the_bytes_are_those_of_the_pipeline_for_any_number_of_threads(self):
        written = cargo("-p", "bt-pipeline", "--example", "batches", "--", self.shards, "barlow-cifar", str(BATCH), "5", "6")
        expected = np.frombuffer(written, np.float32).reshape(6, 2, BATCH, 3, 32, 32)
        for threads in (1, 3):
            self.assert_same(self.batches(self.loader(threads=threads), 6), expected)

    def test_an_epoch_ends_the_loop_and_the_next_loop_goes_on(self):
        loader = self.loader()
        self.assertEqual((len(loader), loader.samples), (4, 70))
        first, second = ([np.copy(a) for a, b in loader] for _ in range(2))
        self.assertEqual((len(first), len(second), loader.epoch), (4, 4, 2))
        self.assertFalse(np.array_equal(first[0], second[0]))
        loader.set_epoch(1)
        self.assert_same([[np.copy(a)] for a, b in loader], [[a] for a in second])

    def test_resuming_gives_the_very_next_batch(self):
        whole = self.batches(self.loader(), 8)
        loader = self.loader()
        self.batches(loader, 6)
        state = loader.state_dict()
        self.assertEqual((state["epoch"], state["batch"]), (1, 2))
        self.assert_same(self.batches(self.loader(resume=state), 2), whole[6:])
        loader.load_state_dict({**state, "epoch": 0, "batch": 3})
        self.assert_same(self.batches(loader, 1), whole[3:4])
        with self.assertRaisesRegex(ValueError, "seed 6"):
            loader.load_state_dict({**state, "seed": 6})

    def test_a_state_of_another_order_is_refused(self):
        state = self.loader().state_dict()
        for settings, named in [
            ({"shuffle": "none"}, "shuffle global, this loader has none"),
            ({"shuffle": "window"}, "shuffle global, this loader has window"),
            ({"drop_last": False}, "drop_last True"),
            ({"batch_size": 8}, "batch_size 16"),
        ]:
            with self.assertRaisesRegex(ValueError, named):
                self.loader(resume=state, **settings)
        with self.assertRaisesRegex(ValueError, "does not tell its shuffle"):
            self.loader(resume={key: value for key, value in state.items() if key != "shuffle"})
        # A window is compared where it is used; JSON makes a list of it.
        window = json.loads(json.dumps(self.loader(shuffle="window", window=(2, 30)).state_dict()))
        self.loader(shuffle="window", window=(2, 30), resume=window)
        with self.assertRaisesRegex(ValueError, r"window \[2, 30\]"):
            self.loader(shuffle="window", window=(2, 31), resume=window)
        self.loader(window=(3, 7), resume=state)

    def test_ranks_share_each_batch(self):
        whole = self.batches(self.loader(), 2)
        shares = [self.batches(self.loader(rank=rank, world=2), 2) for rank in range(2)]
        for number, (a, b) in enumerate(whole):
            for rank, share in enumerate(shares):
                np.testing.assert_array_equal(a[rank::2], share[number][0])

    def test_a_loop_gets_the_loaders_own_memory_and_a_list_does_not_stop_it(self):
        loader = self.loader()
        addresses = set()
        for _ in range(5):
            for a, b in loader:
                self.assertTrue(a.base._native.is_own)
                self.assertTrue(a.flags.writeable and a.flags.c_contiguous)
                # Both views lie in one buffer, one behind the other.
                self.assertEqual(b.ctypes.data - a.ctypes.data, a.nbytes)
                addresses.add(a.ctypes.data)
        self.assertLessEqual(len(addresses), 4)
        loader = self.loader()
        kept = [pair for _ in range(3) for pair in loader]
        self.assertEqual(len(kept), 12)
        own = [a.base._native.is_own for a, _ in kept]
        self.assertTrue(own[0] and not own[-1], own)
        self.assert_same(kept, self.batches(self.loader(), 12))

    def test_an_array_outlives_its_loader(self):
        a, b = next(iter(self.loader()))
        expected = np.copy(a)
        gc.collect()
        next(iter(self.loader(seed=6)))
        np.testing.assert_array_equal(a, expected)

    def test_labels_layouts_types_and_what_belongs_to_a_batch(self):
        (a, b), labels = next(iter(self.loader(labels=True, layout="nhwc", dtype="uint8")))
        self.assertEqual((a.shape, a.dtype, labels.dtype), ((BATCH, 32, 32, 3), np.uint8, np.int64))
        batch = next(iter(self.loader()))
        self.assertEqual((batch.epoch, batch.index, len(batch.samples)), (0, 0, BATCH))
        np.testing.assert_array_equal(batch.labels, labels)
        (view,) = next(iter(self.loader(preset="eval", views="both.center_crop.size = 24\nboth.resize.size = 24")))
        self.assertEqual(view.shape, (BATCH, 3, 24, 24))

    def test_shards_behind_a_url_give_the_same_bytes_with_a_cache_and_without(self):
        with self.served() as (server, url):
            expected = self.batches(self.loader(), 6)
            with tempfile.TemporaryDirectory() as cache:
                cold, warm = {"cache": cache, "cache_size": "1GB"}, {"cache": cache}
                for settings in ({}, cold, warm):
                    server.sent = 0
                    loader = self.loader(url, **settings)
                    self.assert_same(self.batches(loader, 6), expected)
                    # Only a warm cache never waits for the server; others need not, where all comes in time.
                    if settings is warm:
                        self.assertEqual(loader.stats()["network"], 0)
                    else:
                        self.assertGreater(server.sent, 0)
                    if settings is cold:
                        self.wait_for_files(cache)

    @unittest.skipUnless(hasattr(os, "fork"), "no fork")
    def test_a_forked_child_is_told_to_make_its_own_loader_and_may(self):
        def digest(loader):
            return [float(a.sum()) for a, b in self.batches(loader, 5)]

        def child(loader, shards):
            # What was made before the fork can be let go of, and what is in memory is still there.
            with self.assertRaisesRegex(RuntimeError, "make it after the fork"):
                next(iter(loader))
            kept.clear()
            self.assertEqual(len(loader), 4)
            return digest(self.loader(shards))

        expected = str(digest(self.loader()))
        with self.served() as (_, url):
            for shards in (self.shards, url):
                # With threads that run, and before there are any.
                for taken in (1, 0):
                    loader = self.loader(shards)
                    kept = list(itertools.islice(loader, taken))
                    self.assertEqual(self.in_a_child(lambda: child(loader, shards)), expected)
                    self.assertEqual(len(self.batches(loader, 4 - taken)), 4 - taken)

    def test_ctrl_c_ends_the_wait_for_a_server_and_no_batch_is_lost(self):
        expected = self.batches(self.loader(), 4)
        with self.served() as (server, url):
            server.answers.clear()
            with self.interrupted():
                self.loader(url)
            server.answers.set()
            loader = self.loader(url, resume={**self.loader().state_dict(), "batch": 1})
            server.answers.clear()
            with self.interrupted():
                next(iter(loader))
            self.assertEqual(loader.state_dict()["batch"], 1)
            server.answers.set()
            self.assert_same(self.batches(loader, 3), expected[1:])

    def test_statistics_can_be_asked_for_while_a_batch_is_awaited(self):
        expected = self.batches(self.loader(), 3)
        with self.served() as (server, url):
            loader, taken = self.loader(url), []
            server.answers.clear()
            waiting = threading.Thread(target=lambda: taken.extend(self.batches(loader, 2)))
            waiting.start()
            until = time.monotonic() + 10
            while loader.stats().get("wait_for_data", 0) < 0.1:
                self.assertLess(time.monotonic(), until)
                time.sleep(0.02)
            self.assertEqual(loader.stats()["batches"], 0)
            # Two loops over one loader would each get half of the batches. The one that is refused takes nothing
            # from the other, however often it tries.
            for _ in range(3):
                with self.assertRaisesRegex(RuntimeError, "another thread waits"):
                    next(iter(loader))
                self.assertGreater(loader.stats()["wait_for_data"], 0)
            server.answers.set()
            waiting.join()
            self.assertEqual(loader.state_dict()["batch"], 2)
            self.assert_same(taken + self.batches(loader, 1), expected)

    def test_a_loop_after_an_error_begins_with_the_same_batch(self):
        expected = self.batches(self.loader(), 4)
        with self.served() as (server, url):
            loader = self.loader(url)
            server.refuses = True
            for _ in range(2):
                with self.assertRaisesRegex(OSError, "403"):
                    next(iter(loader))
            server.refuses = False
            self.assert_same(self.batches(loader, 4), expected)

    def test_a_bad_sample_is_named_each_time_and_passed_by_going_elsewhere(self):
        with tempfile.TemporaryDirectory() as folder:
            shard = os.path.join(folder, "a.tar")
            with tarfile.open(sorted(pathlib.Path(self.shards).glob("*.tar"))[0]) as whole, tarfile.open(shard, "w") as out:
                images = 0
                for member in whole:
                    data = whole.extractfile(member).read()
                    if not member.name.endswith((".cls", ".json")):
                        images += 1
                        data = b"nothing" if images == BATCH + 2 else data
                    member.size = len(data)
                    out.addfile(member, io.BytesIO(data))
            loader = self.loader(shard, shuffle="none", on_bad="stop")
            start = loader.state_dict()
            first = self.batches(loader, 1)
            texts = set()
            for _ in range(2):
                with self.assertRaisesRegex(RuntimeError, "a.tar") as raised:
                    next(iter(loader))
                texts.add(str(raised.exception))
            self.assertEqual(len(texts), 1, texts)
            loader.load_state_dict(start)
            self.assert_same(self.batches(loader, 1), first)

    def test_the_position_behind_an_epochs_last_batch_is_the_next_epochs_first(self):
        loader = self.loader()
        loader.load_state_dict({**loader.state_dict(), "batch": 4})
        self.assertEqual(loader.epoch, 1)
        self.assertEqual([(batch.epoch, batch.index) for batch in loader], [(1, 0), (1, 1), (1, 2), (1, 3)])
        state = loader.state_dict()
        self.assertEqual((state["epoch"], state["batch"]), (2, 0))
        with self.assertRaisesRegex(ValueError, "batch 5, an epoch of this loader has 4"):
            loader.load_state_dict({**state, "batch": 5})
        self.assertEqual(loader.state_dict(), state)

    def test_mistakes_are_named(self):
        for settings, text in [
            ({"preset": "dino"}, "preset 'dino'"),
            ({"views": "c.gaussian_blur.p = 1.0"}, '"c"'),
            ({"views": "both.gaussian_blur.q = 1.0"}, "q"),
            ({"shuffle": "some"}, "global, window or none"),
            ({"batch_size": 71}, "71"),
            ({"cache_size": "much"}, "much"),
            ({"batch_size": -1}, "batch_size -1"),
            ({"seed": -1}, "seed -1"),
            ({"seed": 1 << 64}, "64 bits"),
            ({"window": (-1, 4)}, "window -1"),
            ({"budget_mb": 1 << 63}, "budget_mb"),
        ]:
            with self.assertRaisesRegex(ValueError, text):
                self.loader(**settings)
        with self.assertRaises((OSError, ValueError)):
            bt_stream.Loader(os.path.join(self.folder.name, "nothing"))
        with self.assertRaisesRegex(TypeError, "batch_size 'x'"):
            self.loader(batch_size="x")
        with self.assertRaisesRegex(ValueError, "epoch -1"):
            self.loader().set_epoch(-1)

    def test_a_state_that_tells_no_place_is_refused(self):
        loader = self.loader()
        state = loader.state_dict()
        for wrong, text in [
            ({key: value for key, value in state.items() if key != "epoch"}, "tell its epoch"),
            ({key: value for key, value in state.items() if key != "batch"}, "tell its batch"),
            ({**state, "epoch": "1"}, "epoch '1'"),
            ({**state, "epoch": -1}, "epoch -1"),
            ({**state, "batch": None}, "batch None"),
            ({**state, "batch": 1.5}, "batch 1.5"),
            (None, "NoneType"),
            (7, "int"),
        ]:
            with self.assertRaisesRegex(ValueError, text):
                loader.load_state_dict(wrong)
        self.assertEqual(loader.state_dict(), state)

    def test_numpys_numbers_are_settings_and_the_state_is_json(self):
        settings = {"batch_size": np.int64(BATCH), "seed": np.uint32(5), "shuffle": "window",
                    "window": np.array([2, 30]), "drop_last": np.bool_(True), "threads": np.int8(2)}
        loader = self.loader(**settings)
        loader.set_epoch(np.int64(1))
        state = json.loads(json.dumps(loader.state_dict()))
        self.assertEqual((state["epoch"], state["batch_size"], state["window"]), (1, BATCH, [2, 30]))
        self.loader(resume=state, **settings)

    def test_a_batch_can_be_copied_and_pickled(self):
        batch = next(iter(self.loader()))
        for same in (copy.copy(batch), copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
            self.assertIs(type(same), bt_stream.Batch)
            self.assert_same([same], [batch])
            self.assertEqual((same.epoch, same.index), (batch.epoch, batch.index))
            np.testing.assert_array_equal(same.labels, batch.labels)
            np.testing.assert_array_equal(same.samples, batch.samples)
        self.assertTrue(np.shares_memory(copy.copy(batch)[0], batch[0]))
        self.assertFalse(np.shares_memory(copy.deepcopy(batch)[0], batch[0]))

    def test_tensors_share_the_memory(self):
        try:
            import torch

            import bt_stream.torch
        except ImportError:
            self.skipTest("no torch")
        a, b = next(iter(self.loader()))
        self.assertEqual(torch.from_dlpack(a).data_ptr(), a.ctypes.data)
        self.assertEqual(torch.from_numpy(a).data_ptr(), a.ctypes.data)
        data = bt_stream.torch.PairDataset(self.loader(labels=True))
        loader = torch.utils.data.DataLoader(data, batch_size=None)
        self.assertEqual(len(loader), 4)
        (first, _), labels = next(iter(loader))
        self.assertEqual((first.shape, labels.dtype), ((BATCH, 3, 32, 32), torch.int64))
        np.testing.assert_array_equal(first.numpy(), a)
        with self.assertRaisesRegex(RuntimeError, "num_workers=0"):
            next(iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=1)))

    def test_pytorch_pins_in_the_training_thread_and_takes_no_batch_ahead(self):
        try:
            import torch

            import bt_stream.torch
        except ImportError:
            self.skipTest("no torch")
        threads = []

        def pin(data, device):
            threads.append(threading.current_thread())
            return data

        data = bt_stream.torch.PairDataset(self.loader())
        # Where there is no GPU PyTorch pins nothing.
        with unittest.mock.patch.multiple(
                "torch.accelerator", is_available=lambda: True, current_accelerator=lambda: torch.device("cuda")), \
                unittest.mock.patch("torch.utils.data._utils.pin_memory.pin_memory", pin):
            for number, _ in enumerate(torch.utils.data.DataLoader(data, batch_size=None, pin_memory=True), start=1):
                self.assertEqual(data.state_dict()["epoch"] * 4 + data.state_dict()["batch"], number)
        self.assertEqual(threads, [threading.main_thread()] * 4)


if __name__ == "__main__":
    unittest.main()
