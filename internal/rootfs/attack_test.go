package rootfs

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The attacker gets nothing of a host that is full of traps, with the kernel
// as the guard and, where the host is an overlay itself, with whiteouts.
func TestAttack(t *testing.T) {
	for _, on := range []bool{false, true} {
		t.Run(fmt.Sprintf("overlay=%t", on), func(t *testing.T) {
			h := newHost(t, on)
			o := traps(t, h)
			before := census(t, h)
			dir, root := mounted(t, Options{Expose: []string{"/home/me/src"}})
			if out := runIn(t, root, o); out != "" {
				t.Error(out)
			}
			if diff := cmp.Diff(before, census(t, h)); diff != "" {
				t.Errorf("the host changed (-before +after):\n%s", diff)
			}
			if changes, err := Diff(dir); err != nil || len(changes) < 10 {
				t.Errorf("diff: %v, %v", changes, err)
			}
		})
	}
}

// The attacker is one: on a host that is handed over as it is, it gets through
// with each kind of trick.
func TestAttackerIsOne(t *testing.T) {
	h := newHost(t, false)
	o := traps(t, h)
	for _, d := range []string{"proc", "dev", "sys", "probe", "mnt", "tmp"} {
		must(t, os.MkdirAll(filepath.Join(h, d), 0o755))
	}
	out := runIn(t, Root{Path: h}, o)
	for _, trick := range []string{
		"uid 65534: reads /root/x", "uid 1000: connected to", "uid 1000: opened the device /usr/zero", "uid 1000: /usr/bin/suid runs as 0",
		"uid 0: /etc/shadow: open", "uid 0: /etc/shadow: /proc/1/root", "uid 0: /etc/shadow: hard link", "uid 0: /etc/shadow: renamed",
		"uid 0: made and opened the device /usr/node", "uid 0: /usr/vault0: chown and chmod", "uid 0: reads /opt/closed/mount/open",
	} {
		if !strings.Contains(out, trick) {
			t.Errorf("the attacker did not get through: %s", trick)
		}
	}
}

// traps fills a host.
func traps(t *testing.T, h string) orders {
	t.Helper()
	at := func(path string) string { return filepath.Join(h, path) }
	o := orders{
		Closed: map[string]string{}, Look: true,
		Write: []string{"/usr", "/usr/lib/deep", "/etc", "/opt/app/data", "/home/me/src", "/"},
	}
	for _, d := range o.Write[:len(o.Write)-1] {
		put(t, at(d+"/old"), "old", 0o644)
		put(t, at(d+"/tree/a/b"), "b", 0o644)
		put(t, at(d+"/tree/c"), "c", 0o644)
	}
	must(t, unix.Mount("data", at("/opt/app/data"), "tmpfs", 0, "mode=755")) // over what was put there
	t.Cleanup(func() { unix.Unmount(at("/opt/app/data"), unix.MNT_DETACH) })
	put(t, at("/opt/app/data/old"), "old", 0o644)
	put(t, at("/opt/app/data/tree/c"), "c", 0o644)
	for name, target := range map[string]string{"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib"} {
		must(t, os.Symlink(target, at(name)))
	}
	n := 0
	hide := func(path string, mode uint32, uid int) {
		n++
		content := fmt.Sprintf("%s %d", secret, n)
		put(t, at(path), content, mode)
		must(t, os.Chown(at(path), uid, uid))
		must(t, unix.Chmod(at(path), mode)) // chown takes setuid away
		o.Closed[path] = fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
	}
	owners := []int{0, 1, 1000, 65534}
	for _, dir := range []string{"/usr/lib", "/usr/lib/deep/er", "/etc", "/etc/ssh", "/opt", "/opt/app/data", "/home/me/src"} {
		for _, mode := range []uint32{0, 0o400, 0o600, 0o640, 0o660, 0o700, 0o711, 0o751, 0o4711, 0o2640} {
			for _, uid := range owners {
				hide(fmt.Sprintf("%s/%o %d, it's:closed\\", dir, mode, uid), mode, uid)
			}
		}
	}
	hide("/etc/shadow", 0o640, 0)
	hide("/etc/gshadow", 0o600, 0)
	put(t, at("/etc/passwd"), "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n", 0o644)
	put(t, at("/etc/group"), "root:x:0:\n", 0o644)
	must(t, os.Symlink("../run/resolv.conf", at("/etc/resolv.conf")))
	vaults(t, at, &o)
	// A mount in a closed directory, and what is under a mount.
	must(t, os.MkdirAll(at("/opt/closed/mount"), 0o755))
	must(t, unix.Mount("hidden", at("/opt/closed/mount"), "tmpfs", 0, "mode=755"))
	t.Cleanup(func() { unix.Unmount(at("/opt/closed/mount"), unix.MNT_DETACH) })
	put(t, at("/opt/closed/mount/open"), secret, 0o644)
	must(t, os.Chmod(at("/opt/closed"), 0o700))
	// What is on no list.
	for _, path := range []string{"/root/x", "/var/lib/x", "/run/x", "/home/me/x", "/srv/x", "/data/x", "/x"} {
		put(t, at(path), secret, 0o644)
		o.Gone = append(o.Gone, path)
	}
	must(t, os.Symlink("/data", at("/usr/data")))
	must(t, os.Symlink("../../../root/x", at("/usr/root")))
	moreTraps(t, at, &o)
	return o
}

// vaults are closed directories.
func vaults(t *testing.T, at func(string) string, o *orders) {
	t.Helper()
	for i, mode := range []uint32{0, 0o700, 0o710, 0o701, 0o711, 0o704, 0o750} {
		dir := fmt.Sprintf("/usr/vault%d", i)
		put(t, at(dir+"/"+secret), secret, 0o644)
		must(t, os.Chown(at(dir), i, 0))
		must(t, unix.Chmod(at(dir), mode))
		if mode != 0o704 { // its names may be read, and they tell where nothing can be opened
			o.Closed[dir] = ""
		} else {
			must(t, os.Rename(at(dir+"/"+secret), at(dir+"/file")))
		}
	}
}

// moreTraps are files that are not plain.
func moreTraps(t *testing.T, at func(string) string, o *orders) {
	t.Helper()
	for _, path := range []string{"/usr/socket", "/etc/socket", "/opt/app/data/socket", "/home/me/src/socket"} {
		l, err := net.Listen("unix", at(path))
		must(t, err)
		t.Cleanup(func() { l.Close() })
		must(t, os.Chmod(at(path), 0o777))
		o.Sockets = append(o.Sockets, path)
	}
	for _, path := range []string{"/usr/zero", "/etc/zero", "/opt/zero", "/home/me/src/zero"} {
		must(t, unix.Mknod(at(path), unix.S_IFCHR, int(unix.Mkdev(1, 5))))
		must(t, os.Chmod(at(path), 0o666))
		o.Devices = append(o.Devices, path)
	}
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	for path, mode := range map[string]uint32{"/usr/bin/suid": 0o4755, "/usr/bin/caps": 0o755} {
		put(t, at(path), string(self), mode)
		o.Setuid = append(o.Setuid, path)
	}
	// CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN and CAP_SETUID in a file, version 2.
	caps := make([]byte, 20)
	caps[0], caps[3], caps[4], caps[6] = 1, 2, 1<<2|1<<7, 1<<5
	must(t, unix.Setxattr(at("/usr/bin/caps"), "security.capability", caps, 0))
	c := exec.Command(at("/usr/bin/suid")) // on the host it does work
	c.Env = []string{"ROOTFS_TEST=suid"}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	must(t, unix.Chmod(filepath.Dir(at("/")), 0o755))
	if out, err := c.CombinedOutput(); err == nil && string(out) != "0" {
		t.Errorf("the trap is none: %s", out)
	}
}

// Of the host that the test runs on, too.
func TestAttackOnThisHost(t *testing.T) {
	o := orders{Closed: map[string]string{}, Gone: []string{"/root/.bashrc", "/run/systemd", "/var/lib/dpkg", "/boot/grub"}}
	for _, e := range names("/") {
		if !allowed(e) {
			continue
		}
		found, err := closedBelow("/" + e)
		must(t, err)
		for _, rel := range found {
			path := filepath.Join("/", e, rel)
			info, err := os.Lstat(path)
			if err != nil {
				continue
			}
			if info.IsDir() {
				o.Closed[path] = ""
			} else if content, err := os.ReadFile(path); err == nil && len(content) > 0 { // nothing in it is no secret
				o.Closed[path] = fmt.Sprintf("%x", sha256.Sum256(content))
			}
		}
	}
	if o.Closed["/etc/shadow"] == "" {
		t.Errorf("/etc/shadow is not closed on this host: %v", slices.Collect(maps.Keys(o.Closed)))
	}
	t.Logf("%d closed files", len(o.Closed))
	before := census(t, "/etc")
	_, root := mounted(t, Options{})
	if out := runIn(t, root, o); out != "" {
		t.Error(out)
	}
	if diff := cmp.Diff(before, census(t, "/etc")); diff != "" {
		t.Errorf("the host changed (-before +after):\n%s", diff)
	}
}

// census writes down all there is of each file.
func census(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		attrs := make([]byte, 4096)
		n, _ := unix.Llistxattr(path, attrs)
		what := fmt.Sprintf("%o %d:%d %d %v %v %d %x %q", st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim, st.Ctim, st.Size, st.Rdev,
			strings.TrimRight(string(attrs[:max(n, 0)]), "\x00"))
		if e.Type().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" %x", sha256.Sum256(content))
		}
		all[path] = what
		return nil
	}))
	return all
}
