package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestWhiteouts(t *testing.T) {
	below := pack(t, directory("/"), file("gone", "1"), file("stays", "1"), file("d/lower", "1"), file("e/lower", "1"), file("f", "1"), symlink("l", "d"))
	for _, tt := range []struct {
		name    string
		entries []entry
		want    string
	}{
		{"file", []entry{file(".wh.gone", "")}, "d d/lower e e/lower f l stays"},
		{"directory", []entry{file(".wh.d", "")}, "e e/lower f gone l stays"},
		{"symlink and not what it leads to", []entry{file(".wh.l", "")}, "d d/lower e e/lower f gone stays"},
		{"device 0:0", []entry{device("gone", tar.TypeChar, 0, 0)}, "d d/lower e e/lower f l stays"},
		{"opaque", []entry{directory("d"), file("d/.wh..wh..opq", ""), file("d/own", "")}, "d d/own e e/lower f gone l stays"},
		{"opaque comes last", []entry{directory("d"), file("d/own", ""), file("d/.wh..wh..opq", "")}, "d d/own e e/lower f gone l stays"},
		{"opaque root", []entry{directory("/"), file(".wh..wh..opq", ""), file("own", "")}, "own"},
		{"whiteout and then a directory", []entry{file(".wh.d", ""), directory("d"), file("d/own", "")}, "d d/own e e/lower f gone l stays"},
		{"directory and then a whiteout", []entry{directory("d"), file("d/own", ""), file(".wh.d", "")}, "d d/own e e/lower f gone l stays"},
		{"whiteout and then a directory implied", []entry{file(".wh.d", ""), file("d/own", "")}, "d d/own e e/lower f gone l stays"},
		{"file and then a whiteout", []entry{file("gone", "2"), file(".wh.gone", "")}, "d d/lower e e/lower f gone l stays"},
		{"file over a directory", []entry{file("d", "2")}, "d e e/lower f gone l stays"},
		{"directory over a file", []entry{directory("f"), file("f/own", "")}, "d d/lower e e/lower f f/own gone l stays"},
		{"nothing to hide", []entry{file("new/.wh.x", ""), file("e/.wh.x", "")}, "d d/lower e e/lower f gone l new stays"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parent := t.TempDir()
			dirs := map[string]string{}
			for _, name := range []string{"lower", "upper", "onto", "merged"} {
				dirs[name] = filepath.Join(parent, name)
				must(t, os.Mkdir(dirs[name], 0o755))
			}
			layer := pack(t, tt.entries...)
			must(t, unpackTo(dirs["lower"], Overlay, below))
			must(t, unpackTo(dirs["upper"], Overlay, layer))
			must(t, unpackTo(dirs["onto"], Onto, below))
			must(t, unpackTo(dirs["onto"], Onto, layer))
			lower := dirs["upper"] + ":" + dirs["lower"]
			if opaque, err := Opaque(dirs["upper"]); err != nil || opaque {
				must(t, err)
				must(t, os.RemoveAll(dirs["lower"]))
				must(t, os.Mkdir(dirs["lower"], 0o755))
			}
			must(t, unix.Mount("overlay", dirs["merged"], "overlay", unix.MS_RDONLY, "lowerdir="+lower))
			defer unix.Unmount(dirs["merged"], unix.MNT_DETACH)
			for _, form := range []string{"merged", "onto"} {
				var names []string
				must(t, filepath.Walk(dirs[form], func(path string, _ os.FileInfo, err error) error {
					if name, _ := filepath.Rel(dirs[form], path); name != "." {
						names = append(names, name)
					}
					return err
				}))
				if got := strings.Join(names, " "); got != tt.want {
					t.Errorf("%s:\n got %s\nwant %s", form, got, tt.want)
				}
			}
		})
	}
}

// Where no marks of an overlay can be made, that is said before anything is read.
func TestNoMarks(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	defer unix.Unmount(dir, unix.MNT_DETACH)
	for _, d := range []string{"lower", "upper", "work", "root"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	root := filepath.Join(dir, "root")
	must(t, unix.Mount("none", root, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)))
	defer unix.Unmount(root, unix.MNT_DETACH)
	in := bytes.NewReader(pack(t, file("a", "1")))
	whole := in.Len()
	_, err := Unpack(t.Context(), root, in, Options{Form: Overlay})
	if left, _ := os.ReadDir(root); !errors.Is(err, berth.ErrUnsupported) || in.Len() != whole || len(left) > 0 {
		t.Errorf("%v; %d of %d bytes were read, %v is left", err, whole-in.Len(), whole, left)
	}
}

func TestLimits(t *testing.T) {
	many := func(n int) (entries []entry) {
		for i := range n {
			entries = append(entries, file(fmt.Sprint("d/", i), ""))
		}
		return entries
	}
	lying := pack(t, file("f", strings.Repeat("x", 100)))
	for _, tt := range []struct {
		name    string
		archive io.Reader
		bad     string
	}{
		{"bytes", bytes.NewReader(pack(t, file("a", strings.Repeat("x", 600)), file("b", strings.Repeat("x", 600)))), "more than 1000 bytes"},
		{"entries", bytes.NewReader(pack(t, many(101)...)), "more than 100 entries"},
		{"directories that are implied", bytes.NewReader(pack(t, file(strings.Repeat("d/", 200)+"f", ""))), "more than 100 entries"},
		{"no end", endless{}, "longer than its limits"},
		{"a hole of 8 TB", bytes.NewReader(sparse(t, 8<<40)), "more than 1000 bytes"},
		{"ends in a file", bytes.NewReader(lying[:550]), "ends in the middle"},
		{"ends in a header", bytes.NewReader(lying[:300]), "ends in the middle"},
		{"no archive", strings.NewReader(strings.Repeat("no archive", 100)), "no tar archive"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Unpack(t.Context(), t.TempDir(), tt.archive, Options{MaxBytes: 1000, MaxEntries: 100})
			if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), tt.bad) {
				t.Errorf("got %v, want %q", err, tt.bad)
			}
		})
	}
}

// endless is an archive of zeros behind its end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// sparse is an archive as GNU tar makes it, of a file that ends in one byte
// after a hole.
func sparse(t *testing.T, size int64, options ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, err)
	_, err = f.WriteAt([]byte("x"), size-1)
	must(t, err)
	must(t, f.Close())
	archive, err := exec.Command("tar", append(options, "-C", dir, "-S", "-c", "f")...).Output()
	must(t, err)
	return archive
}

func TestHolesStayHoles(t *testing.T) {
	const size = 32 << 20
	for _, options := range [][]string{
		{"--format=gnu"}, {"--format=posix", "--sparse-version=0.0"},
		{"--format=posix", "--sparse-version=0.1"}, {"--format=posix", "--sparse-version=1.0"},
	} {
		dir := t.TempDir()
		must(t, unpackTo(dir, Overlay, sparse(t, size, options...)))
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(dir, "f"), &st))
		if st.Size != size || st.Blocks*512 > 1<<20 {
			t.Errorf("%v: %d bytes in %d blocks", options, st.Size, st.Blocks)
		}
		content, err := os.ReadFile(filepath.Join(dir, "f"))
		must(t, err)
		if content[size-1] != 'x' || bytes.ContainsFunc(content[:size-1], func(r rune) bool { return r != 0 }) {
			t.Errorf("%v: other content", options)
		}
	}
}

func TestManyEntriesInOneDirectory(t *testing.T) {
	var entries []entry
	for i := range 20_000 {
		entries = append(entries, file(fmt.Sprint("d/", i), "x"))
	}
	for _, form := range []Form{Overlay, Onto} {
		dir := t.TempDir()
		must(t, unpackTo(dir, form, pack(t, entries...)))
		names, err := os.ReadDir(filepath.Join(dir, "d"))
		must(t, err)
		if len(names) != 20_000 {
			t.Errorf("%d files", len(names))
		}
	}
}

// broken is a reader that fails.
type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

func TestOtherErrorsComeAsTheyAre(t *testing.T) {
	whole := pack(t, file("f", strings.Repeat("x", 100_000)))
	cause := errors.New("the registry is gone")
	_, err := Unpack(t.Context(), t.TempDir(), io.MultiReader(bytes.NewReader(whole[:5000]), broken{cause}), Options{})
	if !errors.Is(err, cause) || errors.Is(err, berth.ErrInvalid) {
		t.Errorf("a reader that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, t.TempDir(), bytes.NewReader(whole), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	full := t.TempDir()
	must(t, unix.Mount("full", full, "tmpfs", 0, "size=64k"))
	defer unix.Unmount(full, unix.MNT_DETACH)
	if err := unpackTo(full, Overlay, whole); !errors.Is(err, unix.ENOSPC) || errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), `"f"`) {
		t.Errorf("a full disk: %v", err)
	}
	if _, err := Unpack(t.Context(), "/nowhere", bytes.NewReader(whole), Options{}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no directory: %v", err)
	}
}

// TestReadsToTheEnd: who reads along for a digest has seen all of it.
func TestReadsToTheEnd(t *testing.T) {
	whole := append(pack(t, file("f", "x")), make([]byte, 1<<20)...)
	r := bytes.NewReader(whole)
	stats, err := Unpack(t.Context(), t.TempDir(), r, Options{})
	must(t, err)
	if r.Len() != 0 || stats != (Stats{Bytes: 1, Entries: 1}) {
		t.Errorf("%d bytes are left, %+v", r.Len(), stats)
	}
}

// system is an archive like one of a distribution's base system.
func system(t testing.TB, files int) []byte {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	content := strings.Repeat("0123456789abcdef", 8<<10)
	entries := []entry{directory("./"), directory("./usr"), directory("./usr/lib"), directory("./usr/lib/x86_64"), directory("./usr/share")}
	for i := 0; len(entries) < files; i++ {
		dir := fmt.Sprintf("./usr/share/p%d", i/10)
		if i%10 == 0 {
			dir = fmt.Sprintf("./usr/lib/x86_64/q%d", i/100)
		}
		at := time.Unix(1_500_000_000+int64(i), 0)
		set := func(h *tar.Header) { h.ModTime, h.Uid, h.Gid = at, i%7/6*100, i%11/10*8 }
		entries = append(entries, directory(dir).with(set))
		for j := range 12 {
			name := fmt.Sprintf("%s/file-%d-%d", dir, i, j)
			entries = append(entries, file(name, content[:random.IntN(1<<uint(8+random.IntN(8)))]).with(func(h *tar.Header) {
				set(h)
				h.Mode = []int64{0o644, 0o644, 0o755, 0o4755, 0o664}[j%5]
			}))
			if j == 3 {
				entries = append(entries, symlink(name+".so", filepath.Base(name)).with(set), hardlink(name+".hard", name))
			}
		}
	}
	return pack(t, entries...)
}

func TestAsTarUnpacks(t *testing.T) {
	archive := system(t, 3000)
	ours, theirs := t.TempDir(), t.TempDir()
	must(t, unpackTo(ours, Overlay, archive))
	tarX(t, theirs, archive)
	if diff := cmp.Diff(tree(t, theirs), tree(t, ours)); diff != "" {
		t.Errorf("tar -, ours +:\n%s", diff)
	}
}

func tarX(t testing.TB, dir string, archive []byte) {
	t.Helper()
	// Else tar forgets the time of a directory that it comes back to.
	c := exec.Command("tar", "-x", "-p", "--numeric-owner", "--delay-directory-restore", "-C", dir)
	c.Stdin = bytes.NewReader(archive)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
}

// BenchmarkUnpack unpacks an archive of 10,000 entries on the disk (BENCH_DIR,
// else a tmpfs), in turn with GNU tar, and tells how much longer it takes.
func BenchmarkUnpack(b *testing.B) {
	archive := system(b, 10_000)
	in := filepath.Join(b.TempDir(), "layer.tar")
	must(b, os.WriteFile(in, archive, 0o600))
	var ours, theirs time.Duration
	for b.Loop() {
		for _, who := range []*time.Duration{&ours, &theirs} {
			dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "bench")
			must(b, err)
			start := time.Now()
			if who == &ours {
				f, err := os.Open(in)
				must(b, err)
				_, err = Unpack(b.Context(), dir, f, Options{})
				must(b, err)
				f.Close()
			} else if out, err := exec.Command("tar", "-x", "-p", "--numeric-owner", "-f", in, "-C", dir).CombinedOutput(); err != nil {
				b.Fatalf("tar: %v: %s", err, out)
			}
			*who += time.Since(start)
			must(b, os.RemoveAll(dir))
		}
	}
	b.ReportMetric(float64(ours.Milliseconds())/float64(b.N), "ms/ours")
	b.ReportMetric(float64(theirs.Milliseconds())/float64(b.N), "ms/tar")
	b.ReportMetric(float64(ours)/float64(theirs), "x-of-tar")
}
