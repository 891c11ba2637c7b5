package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestMain runs the tests in a mount namespace of their own, on a tmpfs, so
// that nothing of them stays.
func TestMain(m *testing.M) {
	if os.Getenv("LAYER_TEST") != "" {
		if err := private(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "needs root")
		os.Exit(1)
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), "LAYER_TEST=inside")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil {
		os.Exit(1)
	}
}

func private() error {
	if slices.Contains(os.Args, "-test.fuzzworker") { // the one that started it has made it
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("test", "/mnt", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	return os.Setenv("TMPDIR", "/mnt")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// An entry is one of an archive, and what it holds.
type entry struct {
	tar.Header
	content string
}

func file(name, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}, content}
}

func directory(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

func symlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func hardlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

func device(name string, kind byte, major, minor int64) entry {
	return entry{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o666, Devmajor: major, Devminor: minor}}
}

func (e entry) with(f func(h *tar.Header)) entry { f(&e.Header); return e }

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.ModTime.IsZero() {
			e.ModTime = time.Unix(1_600_000_000, 0)
		}
		must(t, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.content)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func unpackTo(dir string, form Form, archive []byte) error {
	_, err := Unpack(context.Background(), dir, bytes.NewReader(archive), Options{Form: form, MaxBytes: 64 << 20, MaxEntries: 50_000})
	return err
}

// tree is what is below a directory, a line for each name.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		name, err := filepath.Rel(dir, path)
		if name != "." {
			line += fmt.Sprintf(" %d", st.Mtim.Sec)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", cut(string(b)))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		names := make([]byte, 1024)
		n, _ := unix.Llistxattr(path, names)
		for x := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
			if x == "" || x == xattrOrigin {
				continue
			}
			value := make([]byte, 256)
			n, err := unix.Lgetxattr(path, x, value)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %s=%q", x, value[:n])
		}
		got[name] = line
		return err
	}))
	return got
}

func cut(s string) string {
	if len(s) > 200 {
		return fmt.Sprintf("%s… %d bytes", s[:200], len(s))
	}
	return s
}

// A canary is what lies beside the directory and must never be touched.
type canary struct {
	dir   string
	paths []string
	was   []unix.Stat_t
}

func newCanary(t testing.TB, parent string) *canary {
	t.Helper()
	c := &canary{dir: filepath.Join(parent, "canary")}
	must(t, os.MkdirAll(filepath.Join(c.dir, "d"), 0o755))
	must(t, os.WriteFile(filepath.Join(c.dir, "f"), []byte("alive"), 0o600))
	c.paths = []string{c.dir, c.dir + "/d", c.dir + "/f", parent}
	for _, p := range c.paths[:3] { // older than a change: a read would move the time of access
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: 1}, {Sec: 2}}, 0))
	}
	c.was = c.look(t)
	return c
}

func (c *canary) look(t testing.TB) []unix.Stat_t {
	t.Helper()
	var now []unix.Stat_t
	for _, p := range c.paths {
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		now = append(now, st)
	}
	return now
}

func (c *canary) check(t testing.TB) {
	t.Helper()
	for i, st := range c.look(t) {
		if i == 3 { // the parent is opened on the way
			st.Atim = c.was[i].Atim
		}
		if st != c.was[i] {
			t.Errorf("%s was touched:\n got %+v\nwant %+v", c.paths[i], st, c.was[i])
		}
	}
}

func TestHostileLayers(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	deep := strings.Repeat("d/", 1500)
	xattr := func(e entry, name, value string) entry {
		return e.with(func(h *tar.Header) { h.PAXRecords = map[string]string{xattrRecord + name: value} })
	}
	const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	for _, tt := range []struct {
		name    string
		entries []entry
		bad     string            // what the error says
		want    map[string]string // the end of a line of tree
	}{
		{name: "absolute name", entries: []entry{file("/canary/f", "x")}, want: map[string]string{"canary/f": `"x"`}},
		{name: "name that climbs", entries: []entry{file("../../canary/f", "x"), file("a/../../../../b", "y")}, want: map[string]string{"canary/f": `"x"`, "b": `"y"`}},
		{name: "symlinked parent that climbs", entries: []entry{symlink("s", "../../canary"), file("s/f", "x")}, want: map[string]string{"canary/f": `"x"`, "s": "-> ../../canary"}},
		{name: "absolute symlinked parent", entries: []entry{directory("r"), symlink("s", "/r"), file("s/f", "x")}, want: map[string]string{"r/f": `"x"`}},
		{name: "symlink to the outside stays a symlink", entries: []entry{symlink("s", "../canary/f"), file("s", "x")}, want: map[string]string{"s": `"x"`}},
		{name: "directory over a symlink", entries: []entry{symlink("s", "../canary"), directory("s"), file("s/f", "x")}, want: map[string]string{"s/f": `"x"`}},
		{name: "symlink to proc", entries: []entry{symlink("s", "/proc/self/root"), file("s/canary", "x")}, want: map[string]string{"proc/self/root/canary": `"x"`}},
		{name: "symlink loop", entries: []entry{symlink("a", "b"), symlink("b", "a"), file("a/f", "x")}, bad: "too many levels"},
		{name: "hard link that climbs", entries: []entry{hardlink("h", "../canary/f")}, bad: "not in the layer"},
		{name: "absolute hard link", entries: []entry{hardlink("h", "/mnt/canary/f")}, bad: "not in the layer"},
		{name: "hard link through a symlink", entries: []entry{symlink("s", "../canary"), hardlink("h", "s/f")}, bad: "not in the layer"},
		{name: "hard link to a symlink, then written", entries: []entry{symlink("s", "../canary/f"), hardlink("h", "s"), file("h", "x")}, want: map[string]string{"h": `"x"`, "s": "-> ../canary/f"}},
		{name: "hard link to a directory", entries: []entry{directory("d"), hardlink("h", "d")}, bad: "is a directory"},
		{name: "hard link to itself", entries: []entry{file("f", "x"), hardlink("f", "f")}, want: map[string]string{"f": `"x"`}},
		{name: "hard link over its directory", entries: []entry{file("d/f", "x"), hardlink("d", "d/f")}, want: map[string]string{"d": `"x"`}},
		{name: "hard link", entries: []entry{file("d/f", "x"), hardlink("h", "/d/f")}, want: map[string]string{"h": `"x"`}},
		{name: "file as a parent", entries: []entry{file("f", "x"), file("f/g", "y")}, bad: "no directory"},
		{name: "file becomes a directory", entries: []entry{file("f", "x"), directory("f"), file("f/g", "y")}, want: map[string]string{"f/g": `"y"`}},
		{name: "directory becomes a file", entries: []entry{file("d/a/b", "x"), file("d", "y")}, want: map[string]string{"d": `"y"`}},
		{name: "directory listed twice", entries: []entry{directory("d"), file("d/f", "x"), directory("d").with(func(h *tar.Header) { h.Mode = 0o1777 })}, want: map[string]string{"d/f": `"x"`, "d": "41777 0:0 1600000000"}},
		{name: "set-user-ID", entries: []entry{file("su", "x").with(func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o6755, 7, 8 })}, want: map[string]string{"su": `106755 7:8 1600000000 "x"`}},
		{name: "set-group-ID directory", entries: []entry{directory("d").with(func(h *tar.Header) { h.Mode, h.Gid = 0o2775, 8 }), file("d/f", "x"), directory("d/e")}, want: map[string]string{"d": "42775 0:8 1600000000", "d/f": `100644 0:0 1600000000 "x"`, "d/e": "40755 0:0 1600000000"}},
		{name: "devices", entries: []entry{device("c", tar.TypeChar, 1, 3), device("b", tar.TypeBlock, 8, 0), device("p", tar.TypeFifo, 0, 0)}, want: map[string]string{"c": "20666 0:0 1600000000 1:3", "b": "60666 0:0 1600000000 8:0", "p": "10666 0:0 1600000000"}},
		{name: "device as a parent", entries: []entry{device("c", tar.TypeChar, 1, 3), file("c/f", "x")}, bad: "no directory"},
		{name: "no such device", entries: []entry{device("c", tar.TypeChar, 1<<12, 3)}, bad: "no device"},
		{name: "file capability", entries: []entry{xattr(file("ping", "x"), xattrCapability, capNetRaw)}, want: map[string]string{"ping": fmt.Sprintf("%s=%q", xattrCapability, capNetRaw)}},
		{name: "bad file capability", entries: []entry{xattr(file("ping", "x"), xattrCapability, "no")}, bad: xattrCapability},
		{name: "attributes of overlays", entries: []entry{xattr(directory("d"), "trusted.overlay.redirect", "/canary"), xattr(file("f", "x"), "trusted.overlay.metacopy", "")}, want: map[string]string{"d": "40755 0:0 1600000000", "f": `"x"`}},
		{name: "name of 10 KB", entries: []entry{file(long, "x")}, bad: "10000 bytes"},
		{name: "path of 10 KB", entries: []entry{file(strings.Repeat("d/", 5000)+"f", "x")}, bad: "10001 bytes"},
		{name: "name of 300 bytes", entries: []entry{file(long[:300], "x")}, bad: "too long"},
		{name: "target of 10 KB", entries: []entry{symlink("s", long)}, bad: "target"},
		{name: "tree deeper than a path", entries: []entry{directory(deep), symlink("s", deep), directory("s/" + deep)}, bad: "too deep"},
		{name: "whiteout of nothing", entries: []entry{file(".wh.", "")}, bad: "hides no name"},
		{name: "whiteout of the parent", entries: []entry{file("d/.wh...", "")}, bad: "hides no name"},
		{name: "below a whiteout", entries: []entry{file(".wh.d/f", "")}, bad: "no directory"},
		{name: "symlink below a whiteout", entries: []entry{symlink("s", ".wh.d"), file("s/f", "")}, bad: "no directory"},
		{name: "bookkeeping of aufs", entries: []entry{file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", "")}, want: map[string]string{}},
		{name: "no owner", entries: []entry{file("f", "x").with(func(h *tar.Header) { h.Uid = 1<<32 - 1 })}, bad: "no owner"},
		{name: "the root is a file", entries: []entry{file(".", "x")}, bad: "root is a directory"},
		{name: "mode of the root", entries: []entry{directory("./").with(func(h *tar.Header) { h.Mode = 0o700 })}, want: map[string]string{".": "40700 0:0"}},
	} {
		for _, form := range []Form{Overlay, Onto} {
			t.Run(fmt.Sprintf("%s/%d", tt.name, form), func(t *testing.T) {
				parent := t.TempDir()
				dir := filepath.Join(parent, "layer")
				must(t, os.Mkdir(dir, 0o755))
				c := newCanary(t, parent)
				defer c.check(t)
				err := unpackTo(dir, form, pack(t, tt.entries...))
				if tt.bad != "" {
					if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), tt.bad) || len(err.Error()) > 600 {
						t.Errorf("got %v, want %q and invalid", err, tt.bad)
					}
					return
				}
				must(t, err)
				got := tree(t, dir)
				for name, want := range tt.want {
					if !strings.HasSuffix(got[name], want) {
						t.Errorf("%s: got %s, want %s\n%s", name, got[name], want, cmp.Diff(nil, got))
					}
				}
				if len(tt.want) == 0 && len(got) > 1 {
					t.Errorf("there is %v", got)
				}
			})
		}
	}
}
