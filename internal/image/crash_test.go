package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"berth"
	"berth/internal/nettest"
)

// TestMain is also a process that uses a store: child VERB DIR ARGUMENT.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "child" {
		if err := child(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(verb, dir, arg string) error {
	s, err := Open(Options{Dir: dir})
	if err != nil {
		return err
	}
	ctx := context.Background()
	switch verb {
	case "pull":
		_, err = s.Pull(ctx, arg, PullOptions{})
	case "load":
		var f *os.File
		if f, err = os.Open(arg); err == nil {
			_, err = s.Load(ctx, f, nil)
		}
	case "import":
		var f *os.File
		if f, err = os.Open(arg); err == nil {
			_, err = s.Import(ctx, f, "tree", nil, "")
		}
	case "remove":
		_, _, err = s.Remove(ctx, arg, false, nobody)
	case "prune":
		_, err = s.Prune(ctx, true, nobody)
	default:
		err = errors.New("no such verb")
	}
	return err
}

// mortal is this test, built to be killed.
var mortal = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "berth-image-crash-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "image.test")
	cmd := exec.Command("go", "test", "-c", "-tags", "crash", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// killed runs a verb that is killed at its nth point, and reports whether it
// has one.
func killed(t *testing.T, n int, verb, dir, arg string) bool {
	t.Helper()
	path, err := mortal()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, "child", verb, dir, arg)
	cmd.Env = append(os.Environ(), "BERTH_CRASH="+strconv.Itoa(n))
	out, err := cmd.CombinedOutput()
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("%s, killed at point %d: %v: %s", verb, n, err, out)
	}
	return false
}

// kept lists all that a store keeps, with what is in it.
func kept(t *testing.T, s *Store) (all []string) {
	t.Helper()
	for _, f := range tree(t, s.dir) {
		if name, _, _ := strings.Cut(f, " "); !strings.HasPrefix(name, "locks") && name != "index.json.new" {
			all = append(all, f)
		}
	}
	return all
}

// A verb that is killed anywhere leaves all or nothing; done again, the store
// is what it would have been.
func TestCrash(t *testing.T) {
	if path, err := mortal(); err == nil {
		t.Cleanup(func() { os.RemoveAll(filepath.Dir(path)) })
	}
	reg := newServer(t)
	old := reg.push(t, "app", imageOf(t, layerOf(t, archive(t, "base 1")), layerOf(t, archive(t, "old 1"))))
	empty := filepath.Join(t.TempDir(), "images")
	before := filepath.Join(t.TempDir(), "images")
	was := pull(t, open(t, Options{Dir: before}), old)
	tarball := save(t, open(t, Options{Dir: before}), old)
	ref := reg.push(t, "app", imageOf(t, layerOf(t, archive(t, "base 1")), large(t)))
	rootfs := filepath.Join(t.TempDir(), "rootfs.tar")
	if err := os.WriteFile(rootfs, archive(t, "bin/", "bin/sh #!"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, from, verb, arg string }{
		{"pull", empty, "pull", ref},
		{"pull of what has changed", before, "pull", ref},
		{"load", empty, "load", tarball},
		{"import", before, "import", rootfs},
		{"remove", before, "remove", old},
		{"prune", before, "prune", "-"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := 1
			for ; ; n++ {
				s := open(t, Options{})
				if exists(tt.from) {
					run(t, "cp", "-a", tt.from, s.dir)
				}
				if !killed(t, n, tt.verb, s.dir, tt.arg) {
					break
				}
				checkStore(t, n, s)
				gone := tt.verb == "remove" || tt.verb == "prune"
				if err := child(tt.verb, s.dir, tt.arg); err != nil && !(tt.verb == "remove" && errors.Is(err, berth.ErrNotFound)) {
					t.Fatalf("point %d: again: %v", n, err)
				}
				checkStore(t, n, s)
				if imgs, err := s.List(t.Context()); err != nil || (len(imgs) == 0) != gone {
					t.Errorf("point %d: then there are %d images: %v", n, len(imgs), err)
				}
				if _, err := s.Prune(t.Context(), false, func(id string) []string { return map[string][]string{was.ID: {"web"}}[id] }); err != nil {
					t.Errorf("point %d: prune: %v", n, err)
				}
				if gone {
					spare := func(f string) bool { return f == "index.json.new" }
					if got := slices.DeleteFunc(files(t, s), spare); !slices.Equal(got, slices.DeleteFunc(slices.Clone(bare), spare)) {
						t.Errorf("point %d: left: %q", n, got)
					}
					continue
				}
				live, err := s.reachable()
				if err != nil {
					t.Fatal(err)
				}
				for _, dir := range []string{"blobs/sha256", "layers", "tmp"} {
					entries, _ := os.ReadDir(s.path(dir))
					for _, e := range entries {
						if !live[dir+"/"+e.Name()] {
							t.Errorf("point %d: %s/%s is left", n, dir, e.Name())
						}
					}
				}
			}
			if n < 4 {
				t.Errorf("only %d points", n-1)
			}
		})
	}
}

// checkStore finds every image of a store whole.
func checkStore(t *testing.T, n int, s *Store) {
	t.Helper()
	imgs, err := s.List(t.Context())
	if err != nil {
		t.Fatalf("point %d: %v", n, err)
	}
	for _, img := range imgs {
		for _, l := range lowerOf(t, s, img) {
			if len(tree(t, l)) == 0 {
				t.Errorf("point %d: %s is empty", n, l)
			}
		}
		var buf bytes.Buffer
		if err := s.Save(t.Context(), &buf, []string{img.ID}); err != nil {
			t.Errorf("point %d: %v", n, err)
		}
		if _, err := open(t, Options{}).Load(t.Context(), &buf, nil); err != nil {
			t.Errorf("point %d: an image is not whole: %v", n, err)
		}
	}
}

// On a full disk a pull says so and leaves nothing of it, and images can be
// removed.
func TestFullDisk(t *testing.T) {
	h := nettest.NewHost(t)
	dir := t.TempDir()
	h.Run(t, "mount", "-t", "tmpfs", "-o", "size=2m", "none", dir)
	inside := h.Path(dir) // the same directory, seen from here
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{Dir: filepath.Join(inside, "images")})
	do := func(verb, arg string) (string, error) {
		cmd := exec.CommandContext(t.Context(), self, "child", verb, s.dir, arg)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	reg := newServer(t)
	small := reg.push(t, "small", busybox(t))
	if out, err := do("pull", small); err != nil {
		t.Fatal(out)
	}
	was := kept(t, s)
	for _, ref := range []string{reg.push(t, "large", imageOf(t, large(t))), reg.push(t, "bomb", imageOf(t, layerOf(t, archive(t, "zeros "+strings.Repeat("\x00", 8<<20)))))} {
		out, err := do("pull", ref)
		if err == nil || !strings.Contains(out, "the disk is full") || strings.Count(out, "\n") != 1 {
			t.Errorf("pull %s: %v: %s", ref, err, out)
		}
		if got := kept(t, s); !slices.Equal(got, was) {
			t.Errorf("pull %s left %q, there was %q", ref, got, was)
		}
	}
	filler := filepath.Join(inside, "filler")
	if _, err := h.Try("dd", "if=/dev/zero", "of="+filepath.Join(dir, "filler"), "bs=4k"); err == nil {
		t.Fatal("the disk is not full")
	}
	if out, err := do("remove", small); err != nil {
		t.Errorf("remove on a full disk: %s", out)
	}
	os.Remove(filler)
	if got := files(t, s); !slices.Equal(got, bare) {
		t.Errorf("left: %q", got)
	}
}
