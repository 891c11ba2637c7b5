package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth"

	"golang.org/x/sys/unix"
)

// layersOf makes a layer of an image for each list of files, which are divided
// by spaces, and returns their directories, the last first. "-f" hides f,
// "f>to" is a link.
func layersOf(t *testing.T, lists ...string) (lower []string) {
	t.Helper()
	for _, list := range lists {
		dir := t.TempDir()
		for name := range strings.FieldsSeq(list) {
			if hidden, ok := strings.CutPrefix(name, "-"); ok {
				must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(hidden)), 0o755))
				must(t, unix.Mknod(filepath.Join(dir, hidden), unix.S_IFCHR, 0))
			} else if name, to, ok := strings.Cut(name, ">"); ok {
				must(t, os.Symlink(to, filepath.Join(dir, name)))
			} else {
				put(t, filepath.Join(dir, name), "image", 0o644)
			}
		}
		lower = append([]string{dir}, lower...)
	}
	return lower
}

func names0(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// What a container of an image writes is its own, is kept, and is told from
// what its layers have, wherever their links lead.
func TestImage(t *testing.T) {
	outside := t.TempDir()
	put(t, filepath.Join(outside, "secret"), "host", 0o644)
	lower := layersOf(t, "a/x a/y b/z keep link>"+outside, "-a/x a/v c", "-b d/e")
	before := names0(t, lower[2])
	dir := filepath.Join(t.TempDir(), "c")
	t.Cleanup(func() { must(t, Remove(dir)) })
	if changes, err := ImageDiff(dir, lower); err != nil || changes != nil {
		t.Errorf("of what was never mounted: %v, %v", changes, err)
	}
	root, err := MountImage(dir, lower)
	must(t, err)
	again, err := MountImage(dir, lower)
	must(t, err)
	if again != root || len(mountsBelow(t, root)) != 1 {
		t.Errorf("mounted twice: %s, %q", again, mountsBelow(t, root))
	}
	if got := names0(t, root); !slices.Equal(got, []string{"a", "c", "d", "keep", "link"}) {
		t.Errorf("the root has %q", got)
	}
	if changes, err := ImageDiff(dir, lower); err != nil || len(changes) > 0 {
		t.Errorf("at the start: %s, %v", text(changes), err)
	}
	in := func(path string) string { return filepath.Join(root, path) }
	put(t, in("c"), "container", 0o644)
	put(t, in("b/n"), "container", 0o644)
	must(t, os.Remove(in("a/y")))
	must(t, os.Remove(in("link")))
	put(t, in("link/own"), "container", 0o644)
	must(t, os.RemoveAll(in("d")))
	for _, place := range []string{"dev/x", "proc/x", "etc/hosts"} { // as the runtime makes them
		must(t, os.MkdirAll(in(filepath.Dir(place)), 0o755))
	}
	put(t, in("etc/hosts"), "", 0o644)
	const want = "C /a D /a/y A /b A /b/n C /c D /d C /link A /link/own"
	for range 2 {
		changes, err := ImageDiff(dir, lower)
		must(t, err)
		if got := text(changes); got != want {
			t.Errorf("diff\n got %s\nwant %s", got, want)
		}
		must(t, Unmount(dir))
	}
	_, err = MountImage(dir, lower)
	must(t, err)
	if b, err := os.ReadFile(in("c")); string(b) != "container" {
		t.Errorf("after another mount: %q, %v", b, err)
	}
	if after := names0(t, lower[2]); !slices.Equal(after, before) {
		t.Errorf("a layer had %q and has %q", before, after)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory can be looked into: %v, %v", info.Mode(), err)
	}
}

// An overlay cannot hold what is written through another: who asks makes a copy.
func TestImageOnOverlay(t *testing.T) {
	dir := filepath.Join(newHost(t, true), "c")
	if _, err := MountImage(dir, layersOf(t, "a")); !errors.Is(err, berth.ErrUnsupported) {
		t.Errorf("on an overlay: %v", err)
	}
	must(t, Remove(dir))
}

// An image may have anything in place of /dev; nothing leads out of it.
func TestOwnDev(t *testing.T) {
	outside := t.TempDir()
	put(t, filepath.Join(outside, "ptmx"), "host", 0o644)
	for name, list := range map[string]string{"link": "dev>" + outside, "link to the host's": "dev>/dev", "file": "dev", "directory": "dev/null", "nothing": "a"} {
		dir := filepath.Join(t.TempDir(), "c")
		root, err := MountImage(dir, layersOf(t, list))
		must(t, err)
		must(t, OwnDev(root))
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, "dev"), &st); name != "nothing" && (err != nil || st.Mode != unix.S_IFDIR|0o755) {
			t.Errorf("%s: mode %o, %v", name, st.Mode, err)
		}
		must(t, Remove(dir))
	}
	if got := names0(t, outside); !slices.Equal(got, []string{"ptmx"}) {
		t.Errorf("outside is %q", got)
	}
}

// Directories are made where the links of the root lead, and nowhere else.
func TestDirectory(t *testing.T) {
	root := layersOf(t, "var/x up>../../../var abs>/var nothing>/none file")[0]
	for path, want := range map[string]string{"/new/deep": "new/deep", "/up/a": "var/a", "/abs/b/../c": "var/c", "/var": "var"} {
		got, err := Directory(root, path)
		must(t, err)
		if got != filepath.Join(root, want) {
			t.Errorf("%s is %s", path, got)
		}
		if info, err := os.Lstat(got); err != nil || !info.IsDir() {
			t.Errorf("%s: %v", path, err)
		}
	}
	for path, says := range map[string]string{"/nothing/a": "symbolic link to nothing", "/file/a": "not a directory", "/file": "not a directory"} {
		if _, err := Directory(root, path); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
