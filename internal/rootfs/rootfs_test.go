package rootfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"berth"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// mountsBelow lists the mounts at or below a directory.
func mountsBelow(t testing.TB, dir string) (found []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if at := unescape(strings.Fields(line)[4]); below(at, dir) {
			found = append(found, strings.TrimPrefix(at, dir))
		}
	}
	return found
}

func threadNS(t *testing.T) string {
	t.Helper()
	ns, err := os.Readlink("/proc/thread-self/ns/mnt")
	must(t, err)
	return ns
}

func readable(path string) bool {
	_, err := os.ReadDir(path)
	return err == nil
}

func TestMountTwiceIsOnce(t *testing.T) {
	dir, root := mounted(t, Options{})
	if here, err := os.Readlink("/proc/self/ns/mnt"); err != nil || here != threadNS(t) {
		t.Errorf("the process is in %s now: %v", here, err)
	}
	before := mountsBelow(t, dir)
	again, err := Mount(dir, Options{})
	must(t, err)
	if diff := cmp.Diff(root, again); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(before, mountsBelow(t, dir)); diff != "" {
		t.Errorf("mounts (-first +second):\n%s", diff)
	}
	for range 2 {
		must(t, Unmount(dir))
		if left := mountsBelow(t, filepath.Join(dir, "root")); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
}

func TestWritesOutliveUnmount(t *testing.T) {
	h := newHost(t, false)
	put(t, filepath.Join(h, "usr/f"), "host", 0o644)
	put(t, filepath.Join(h, "etc/f"), "host", 0o644)
	dir, root := mounted(t, Options{})
	for _, path := range []string{"usr/f", "etc/f", "srv/f", "usr/new"} {
		put(t, filepath.Join(root.Path, path), "container", 0o644)
	}
	must(t, Unmount(dir))
	_, err := Mount(dir, Options{})
	must(t, err)
	for _, path := range []string{"usr/f", "etc/f", "srv/f", "usr/new"} {
		if b, err := os.ReadFile(filepath.Join(root.Path, path)); string(b) != "container" {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(h, "usr/f")); string(b) != "host" {
		t.Errorf("on the host: %q", b)
	}
	must(t, Remove(dir))
	must(t, Remove(dir))
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after remove: %v", err)
	}
}

// A container that left links and files where its mounts come leads nothing
// astray, and nothing is made outside of its root.
func TestPlacesThatAContainerReplaced(t *testing.T) {
	h := newHost(t, false)
	put(t, filepath.Join(h, "usr/f"), "", 0o644)
	put(t, filepath.Join(h, "srv/deep/data/f"), "", 0o644)
	must(t, os.MkdirAll("/tmp/rootfs-elsewhere/data", 0o755))
	t.Cleanup(func() { os.RemoveAll("/tmp/rootfs-elsewhere") })
	o := Options{Expose: []string{"/srv/deep/data"}}
	dir, _ := mounted(t, o)
	must(t, Unmount(dir))
	srv := filepath.Join(dir, layersDir, "%2F/upper/srv")
	must(t, os.MkdirAll(srv, 0o755))
	must(t, os.Symlink("/tmp/rootfs-elsewhere", filepath.Join(srv, "deep"))) // as a container can
	if _, err := Mount(dir, o); err == nil {
		t.Error("mounted over a link of the container")
	}
	if left := mountsBelow(t, dir); slices.Contains(left, "/root") {
		t.Errorf("mounted after an error: %q", left)
	}
}

func TestExpose(t *testing.T) {
	h := newHost(t, false)
	for _, path := range []string{
		"usr/lib/x/f", "usr/data2/f", "data/f", "srv/a/b/f", "srv/a/c/f", "home/me/src/f", "shut/f", "run/x/f", "var/f", "real/me/f",
	} {
		put(t, filepath.Join(h, path), path, 0o644)
	}
	must(t, os.Chmod(filepath.Join(h, "home/me"), 0o700))
	must(t, os.Chmod(filepath.Join(h, "shut"), 0o750))
	for name, target := range map[string]string{
		"lib": "usr/lib", "usr/data": "../data", "opt": "data", "var/run": "../run", "alias": "real",
	} {
		must(t, os.Symlink(target, filepath.Join(h, name)))
	}
	_, root := mounted(t, Options{Expose: []string{
		"/srv/a", "/srv/a/b", "/home/me/src", "/lib/x", "/lib", "/usr", "/usr/data", "/var/run/x", "/alias/me", "/opt",
	}})
	for _, path := range []string{
		"lib/x/f", "usr/data2/f", "usr/data/f", "data/f", "opt/f", "srv/a/b/f", "srv/a/c/f", "home/me/src/f", "alias/me/f",
	} {
		if _, err := os.Stat(filepath.Join(root.Path, path)); err != nil {
			t.Error(err)
		}
	}
	if !readable(filepath.Join(root.Path, "run/x")) {
		t.Error("/var/run/x is not at /run/x")
	}
	for path, why := range map[string]string{
		"/shut": "closed to other users", "/data/f": "not a directory", "/none": "no such directory", "rel": "absolute path",
		"/": "absolute path", "/proc/1": "has its own", "/sys": "has its own", "/dev/": "has its own",
	} {
		dir := filepath.Join(t.TempDir(), "host")
		_, err := Mount(dir, Options{Expose: []string{path}})
		if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), why) {
			t.Errorf("expose %s: %v", path, err)
		}
		must(t, Remove(dir))
	}
}

// Mounts of the host below what is seen are seen, each as what is reached by
// its path.
func TestMountsOfTheHost(t *testing.T) {
	h := newHost(t, false)
	mount := func(path, file string) {
		t.Helper()
		at := filepath.Join(h, path)
		must(t, os.MkdirAll(at, 0o755))
		must(t, unix.Mount("test", at, "tmpfs", 0, "mode=755"))
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
		put(t, filepath.Join(at, file), file, 0o644)
	}
	mount("usr/local", "hidden") // below the next one
	mount("usr", "one")
	mount("usr/a b\\c", "two")
	mount("usr/a b\\c/d", "three")
	mount("usr/a b\\c/d", "four") // over the one before
	mount("opt", "five")
	mount("home", "six")
	put(t, filepath.Join(h, "usr/file"), "under", 0o644)
	must(t, unix.Mount(filepath.Join(h, "opt/five"), filepath.Join(h, "usr/file"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(filepath.Join(h, "usr/file"), unix.MNT_DETACH) })
	dir, root := mounted(t, Options{Expose: []string{"/home"}})
	for _, path := range []string{"usr/one", "usr/a b\\c/two", "usr/a b\\c/d/four", "opt/five", "home/six"} {
		at := filepath.Join(root.Path, path)
		if b, err := os.ReadFile(at); string(b) != filepath.Base(path) {
			t.Errorf("%s: %q, %v", path, b, err)
		}
		must(t, os.WriteFile(at, []byte("changed"), 0o644))
	}
	for _, path := range []string{"usr/local/hidden", "usr/a b\\c/d/three"} {
		if _, err := os.Lstat(filepath.Join(root.Path, path)); err == nil {
			t.Errorf("%s is seen", path)
		}
	}
	changes, err := Diff(dir)
	must(t, err)
	want := "C /home C /home/six C /opt C /opt/five C /usr C /usr/a b\\c C /usr/a b\\c/d C /usr/a b\\c/d/four C /usr/a b\\c/two C /usr/one"
	if got := text(changes); got != want {
		t.Errorf("diff\n got %s\nwant %s", got, want)
	}
}

func text(changes []Change) string {
	var words []string
	for _, c := range changes {
		words = append(words, fmt.Sprintf("%c %s", c.Kind, c.Path))
	}
	return strings.Join(words, " ")
}

func TestDiff(t *testing.T) {
	h := newHost(t, false)
	for _, path := range []string{"usr/keep", "usr/change", "usr/gone", "usr/tree/a", "usr/tree/b", "usr/tree/sub/c", "usr/tree/sub/d", "usr/kind"} {
		put(t, filepath.Join(h, path), "host", 0o644)
	}
	put(t, filepath.Join(h, "etc/passwd"), "root:x:0:0::/:\n", 0o644)
	put(t, filepath.Join(h, "etc/hosts"), "", 0o644)
	dir, root := mounted(t, Options{})
	in := func(path string) string { return filepath.Join(root.Path, path) }
	if changes, err := Diff(dir); err != nil || len(changes) > 0 {
		t.Errorf("at the start: %s, %v", text(changes), err)
	}
	put(t, in("usr/change"), "container", 0o644)
	must(t, os.Remove(in("usr/gone")))
	must(t, os.RemoveAll(in("usr/tree")))
	put(t, in("usr/tree/sub/c"), "container", 0o644) // tree and sub are opaque
	must(t, os.Remove(in("usr/kind")))
	must(t, os.Mkdir(in("usr/kind"), 0o755))
	put(t, in("root/.rc"), "x", 0o644)
	must(t, os.Remove(in("media")))
	put(t, in("etc/hosts"), "x", 0o644)
	put(t, in("come"), "x", 0o644)
	must(t, os.Remove(in("come"))) // nothing of it is left
	want := "C /etc C /etc/hosts D /media C /root A /root/.rc C /usr C /usr/change D /usr/gone C /usr/kind " +
		"C /usr/tree D /usr/tree/a D /usr/tree/b C /usr/tree/sub C /usr/tree/sub/c D /usr/tree/sub/d"
	for range 2 {
		changes, err := Diff(dir)
		must(t, err)
		if got := text(changes); got != want {
			t.Errorf("diff\n got %s\nwant %s", got, want)
		}
		must(t, Unmount(dir))
	}
	if changes, err := Diff(filepath.Join(t.TempDir(), "none")); err != nil || changes != nil {
		t.Errorf("of nothing: %v, %v", changes, err)
	}
}

func TestReadOnly(t *testing.T) {
	h := newHost(t, false)
	put(t, filepath.Join(h, "usr/f"), "", 0o644)
	put(t, filepath.Join(h, "etc/f"), "", 0o644)
	_, root := mounted(t, Options{ReadOnly: true})
	for _, path := range []string{"usr/x", "etc/x", "sys/devices/system/x"} {
		if err := os.WriteFile(filepath.Join(root.Path, path), nil, 0o644); !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := os.WriteFile(filepath.Join(root.Path, "x"), nil, 0o644); err != nil {
		t.Errorf("the runtime can make no mount point: %v", err)
	}
}

// The accounts inside are the host's, each locked: what comes to use them works
// without what is in the host's own shadow.
func TestAccounts(t *testing.T) {
	h := newHost(t, false)
	put(t, filepath.Join(h, "etc/passwd"), "root:x:0:0::/root:/bin/sh\n\n+nis\n#no\nme:x:1000:1000::/:\n", 0o644)
	put(t, filepath.Join(h, "etc/shadow"), "root:$6$secret:1::::::\n", 0o640)
	put(t, filepath.Join(h, "etc/ssl/private/key"), "secret", 0o600)
	must(t, os.Symlink("../run/stub", filepath.Join(h, "etc/resolv.conf")))
	defer unix.Umask(unix.Umask(0o077))
	_, root := mounted(t, Options{})
	b, err := os.ReadFile(filepath.Join(root.Path, "etc/shadow"))
	if want := "root:*:19000:0:99999:7:::\nme:*:19000:0:99999:7:::\n"; string(b) != want {
		t.Errorf("shadow: %q, %v", b, err)
	}
	if _, err := os.ReadFile(filepath.Join(root.Path, "etc/ssl/private/key")); !errors.Is(err, os.ErrPermission) {
		t.Errorf("key: %v", err)
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		if info, err := os.Lstat(filepath.Join(root.Path, "etc", name)); err != nil || info.Mode() != 0o644 {
			t.Errorf("%s is no file to mount over: %v", name, err)
		}
	}
}

// A container can make directories that no path reaches.
func TestRemoveDeep(t *testing.T) {
	newHost(t, false)
	dir, root := mounted(t, Options{})
	at, err := unix.Open(root.Path, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 3000 {
		must(t, unix.Mkdirat(at, "a", 0o700))
		next, err := unix.Openat(at, "a", unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(at)
		at = next
	}
	unix.Close(at)
	must(t, Remove(dir))
}

// Killed at any point, a mount leaves all or nothing, and the next one works.
func TestKilled(t *testing.T) {
	program := filepath.Join(t.TempDir(), "mount")
	if out, err := exec.Command("go", "test", "-c", "-tags", "crash", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Run("host", func(t *testing.T) { killed(t, program, "mount", nil, "usr", "sys/devices/system") })
	lower := layersOf(t, "a/x", "b/y")
	t.Run("image", func(t *testing.T) { killed(t, program, "image", lower) })
}

// killed kills a mount at each of its points; with are mounts below the root.
func killed(t *testing.T, program, verb string, lower []string, with ...string) {
	dir := filepath.Join(t.TempDir(), "host")
	t.Cleanup(func() { must(t, Remove(dir)) })
	for _, anew := range []bool{true, false} {
		whole := 0
		for n := 1; ; n++ {
			c := exec.Command(program)
			c.Args = append([]string{"mount", dir}, lower...)
			c.Env = append(os.Environ(), "ROOTFS_TEST="+verb, fmt.Sprintf("BERTH_CRASH=%d", n))
			out, err := c.CombinedOutput()
			if err == nil {
				must(t, Remove(dir))
				break
			}
			if c.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("point %d: %v: %s", n, err, out)
			}
			if left := mountsBelow(t, dir); slices.Contains(left, "/root") {
				whole++
				for _, w := range with {
					if !slices.Contains(left, "/root/"+w) {
						t.Errorf("point %d: half a root: %q", n, left)
					}
				}
				must(t, Unmount(dir))
			}
			if anew {
				must(t, Remove(dir))
			}
		}
		if anew && whole != 1 {
			t.Errorf("%d points left a root mounted, 1 should", whole)
		}
	}
}

func BenchmarkMount(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "host")
	for b.Loop() {
		if _, err := Mount(dir, Options{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		must(b, Unmount(dir))
		b.StartTimer()
	}
	must(b, Remove(dir))
}

func BenchmarkUnmount(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "host")
	for b.Loop() {
		b.StopTimer()
		_, err := Mount(dir, Options{})
		must(b, err)
		b.StartTimer()
		must(b, Unmount(dir))
	}
	must(b, Remove(dir))
}

// BenchmarkWalk is what each start costs where the host is an overlay.
func BenchmarkWalk(b *testing.B) {
	for b.Loop() {
		if _, err := closedBelow("/usr"); err != nil {
			b.Fatal(err)
		}
	}
}
