package rootfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// orders are what the attacker is told.
type orders struct {
	Closed  map[string]string // path → hash of what must not be read; of a directory ""
	Sockets []string          // where somebody of the host listens
	Devices []string          // nodes that every user may open
	Setuid  []string          // programs that are root's
	Write   []string          // directories to write in
	Gone    []string          // paths that must not be there
	Look    bool              // through all there is, for what is secret
	Uid     int
}

// secret is in the content or the name of whatever must not be seen.
const secret = "SECRET" + "-of-the-host"

// uids are who attacks: the container's root, a user and nobody.
var uids = []int{0, 1000, 65534}

// probe is the attacker inside. Every line that it prints is a breach, or what
// it could not do although it should.
func probe() {
	var o orders
	content, err := os.ReadFile("/probe/orders")
	if err == nil {
		err = json.Unmarshal(content, &o)
	}
	if err != nil {
		fmt.Println("orders:", err)
		return
	}
	if uid := os.Getenv("ROOTFS_UID"); uid != "" {
		io.ReadAll(os.Stdin) // until the other is ready
		fmt.Sscan(uid, &o.Uid)
		attack(o)
		return
	}
	// The others first: they look at what is untouched.
	for _, uid := range slices.Backward(uids) {
		c := exec.Command("/probe/probe")
		c.Env = append(os.Environ(), fmt.Sprintf("ROOTFS_UID=%d", uid))
		c.Stdout, c.Stderr = os.Stdout, os.Stdout
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		begin, err := c.StdinPipe()
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			fmt.Println("uid", uid, err)
			continue
		}
		// The change of the uid was made in memory that is shared with this
		// process, and closed /proc/1 of it.
		unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
		begin.Close()
		if err := c.Wait(); err != nil {
			fmt.Println("uid", uid, err)
		}
	}
}

func attack(o orders) {
	breach := func(format string, a ...any) {
		fmt.Printf("uid %d: "+format+"\n", append([]any{o.Uid}, a...)...)
	}
	if o.Look {
		look(breach)
	}
	for _, path := range o.Gone {
		if _, err := os.Lstat(path); err == nil {
			breach("%s is there", path)
		}
	}
	for path, hash := range o.Closed {
		attackFile(path, hash, breach)
	}
	for _, path := range o.Sockets {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			breach("connected to the host's socket %s", path)
		}
	}
	for _, path := range o.Devices {
		if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
			f.Close()
			breach("opened the device %s", path)
		}
	}
	for _, path := range o.Setuid {
		c := exec.Command(path)
		c.Env = []string{"ROOTFS_TEST=suid"}
		if out, err := c.Output(); err == nil && string(out) != fmt.Sprint(o.Uid) {
			breach("%s runs as %s", path, out)
		}
	}
	attackKernel(breach)
	attackMounts(o.Look, breach)
	if o.Uid == 0 {
		for _, dir := range o.Write {
			writeIn(dir, breach)
		}
		if o.Look { // after all that, nothing more is to be seen
			look(breach)
		}
	}
}

// look goes through all files there are.
func look(breach func(string, ...any)) {
	filepath.WalkDir("/", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // closed, as it should be
		}
		if slices.Contains([]string{"/proc", "/sys", "/dev", "/probe"}, path) {
			return fs.SkipDir
		}
		if strings.Contains(path, secret) {
			breach("sees %s", path)
		}
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || info.Size() > 1<<16 {
			return nil
		}
		if content, err := os.ReadFile(path); err == nil && bytes.Contains(content, []byte(secret)) {
			breach("reads %s", path)
		}
		return nil
	})
}

// shows reports whether what is at a path is what must not be read.
func shows(path, hash string) bool {
	if hash == "" {
		_, err := os.ReadDir(path)
		return err == nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return err == nil && fmt.Sprintf("%x", h.Sum(nil)) == hash
}

// attackFile tries every way to the content of a file or directory.
func attackFile(path, hash string, breach func(string, ...any)) {
	dir, name := filepath.Split(path)
	try := func(how, at string) {
		if shows(at, hash) {
			breach("%s: %s", path, how)
		}
	}
	try("open", path)
	try("/proc/self/root", "/proc/self/root"+path)
	try("/proc/1/root", "/proc/1/root"+path)
	os.Symlink(path, filepath.Join(dir, name+".link"))
	try("symbolic link", filepath.Join(dir, name+".link"))
	if unix.Chdir(dir) == nil {
		try("working directory", "/proc/self/cwd/"+name)
		unix.Chdir("/")
	}
	if handle, mount, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0); err == nil {
		_ = mount
		if at, err := unix.Open("/", unix.O_RDONLY, 0); err == nil {
			if fd, err := unix.OpenByHandleAt(at, handle, unix.O_RDONLY); err == nil {
				breach("%s: opened by its handle", path)
				unix.Close(fd)
			}
			unix.Close(at)
		}
	}
	if c := exec.Command(path); hash != "" {
		if out, err := c.CombinedOutput(); err == nil || len(out) > 0 {
			breach("%s: executed", path)
		}
	}
	// Whatever brings a copy into the writable layer.
	os.Link(path, filepath.Join(dir, name+".hard"))
	try("hard link", filepath.Join(dir, name+".hard"))
	unix.Setxattr(path, "user.x", []byte("x"), 0)
	unix.Setxattr(path, "trusted.overlay.metacopy", nil, 0)
	unix.Setxattr(path, "trusted.overlay.redirect", []byte("/etc/shadow"), 0)
	unix.Chown(path, os.Getuid(), os.Getgid())
	unix.Chmod(path, 0o777)
	try("chown and chmod", path)
	if f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0); err == nil {
		f.Close()
		try("copied by writing", path)
	}
	if moved := path + ".moved"; os.Rename(path, moved) == nil {
		try("renamed", moved)
		os.Rename(moved, path)
	}
	unix.Truncate(path, int64(len(hash))) // longer than before
	// The directory it is in, elsewhere.
	if moved := filepath.Clean(dir) + ".moved"; os.Rename(filepath.Clean(dir), moved) == nil {
		try("directory renamed", filepath.Join(moved, name))
		os.Rename(moved, filepath.Clean(dir))
	}
}

// attackKernel tries what /proc and /sys have of the host's root.
func attackKernel(breach func(string, ...any)) {
	for _, top := range []string{"/proc", "/sys"} {
		filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
			name := strings.TrimPrefix(path, "/proc/")
			if err != nil || top == "/proc" && (name[0] >= '0' && name[0] <= '9' || name == "self" || name == "thread-self" || name == "sys/net") {
				return fs.SkipDir
			}
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() {
				return nil
			}
			if info.Mode()&0o444 == 0o400 {
				if f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
					var b [1]byte
					if n, err := f.Read(b[:]); err == nil && n > 0 {
						breach("reads %s, which is mode %#o", path, info.Mode().Perm())
					}
					f.Close()
				}
			}
			if info.Mode()&0o200 != 0 && top == "/sys" || strings.HasPrefix(path, "/proc/sys") {
				if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
					f.Close()
					breach("opens %s for writing", path)
				}
			}
			return nil
		})
	}
	for _, path := range []string{"/proc/sysrq-trigger", "/proc/kcore", "/sys/fs/cgroup/release_agent", "/dev/mem", "/dev/kmsg"} {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Rdev == unix.Mkdev(1, 3) {
			continue // /dev/null lies over it
		}
		if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
			f.Close()
			breach("opens %s", path)
		}
	}
}

// attackMounts tries to make nodes and to change mounts, in a user namespace
// too.
func attackMounts(looks bool, breach func(string, ...any)) {
	for _, dir := range []string{"/", "/usr", "/etc", "/opt", "/tmp"} {
		node := filepath.Join(dir, "node")
		if unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) == nil {
			if f, err := os.Open(node); err == nil {
				f.Close()
				breach("made and opened the device %s", node)
			}
			os.Remove(node)
		}
	}
	changeMounts(breach)
	if unix.PivotRoot("/", "/mnt") == nil {
		breach("pivot_root")
	}
	if unix.Mount("tmpfs", "/mnt", "tmpfs", 0, "") == nil {
		breach("mounted a tmpfs")
	}
	c := exec.Command("/proc/self/exe")
	c.Env = []string{"ROOTFS_TEST=userns", fmt.Sprintf("ROOTFS_LOOK=%t", looks)}
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := c.CombinedOutput()
	if len(out) > 0 {
		breach("in a user namespace: %s (%v)", out, err)
	}
}

// changeMounts tries to take mounts away or to open them.
func changeMounts(breach func(string, ...any)) {
	for _, at := range []string{"/etc", "/usr", "/proc", "/sys"} {
		if unix.Unmount(at, unix.MNT_DETACH) == nil {
			breach("unmounted %s", at)
		}
	}
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if unix.MountSetattr(unix.AT_FDCWD, "/usr", 0, &attr) == nil {
		breach("cleared nosuid of /usr")
	}
}

// probeUserns is the attacker as root of a user namespace of its own.
func probeUserns() {
	breach := func(format string, a ...any) { fmt.Printf(format+"\n", a...) }
	changeMounts(breach)
	if unix.Mount("tmpfs", "/mnt", "tmpfs", 0, "") != nil {
		return
	}
	for _, d := range []string{"/mnt/u", "/mnt/w", "/mnt/o", "/mnt/e"} {
		os.Mkdir(d, 0o755)
	}
	// Its own overlay, and a bind mount, of what it sees.
	err := unix.Mount("overlay", "/mnt/o", "overlay", 0, "userxattr,lowerdir=/etc:/mnt/e,upperdir=/mnt/u,workdir=/mnt/w")
	if err != nil {
		err = unix.Mount("/etc", "/mnt/o", "", unix.MS_BIND, "")
	}
	if err == nil {
		unix.Chmod("/mnt/o/gshadow-", 0o777)
		if os.Getenv("ROOTFS_LOOK") == "true" {
			look(breach)
		}
	}
}

// writeIn does what a container may do, and tells what it could not.
func writeIn(dir string, failed func(string, ...any)) {
	try := func(what string, err error) {
		if err != nil {
			failed("%s in %s: %v", what, dir, err)
		}
	}
	try("create", os.WriteFile(filepath.Join(dir, "made"), []byte("x"), 0o644))
	try("make a directory", os.MkdirAll(filepath.Join(dir, "dir/sub"), 0o755))
	old := filepath.Join(dir, "old")
	if dir == "/" { // nothing of the host's is there
		try("create", os.WriteFile(old, nil, 0o644))
		try("make a directory", os.MkdirAll("/tree/a", 0o755))
	}
	f, err := os.OpenFile(old, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("more")
		f.Close()
	}
	try("append", err)
	try("chmod", os.Chmod(old, 0o600))
	try("chown", os.Chown(old, 1000, 1000))
	try("link", os.Link(old, filepath.Join(dir, "old2")))
	try("rename", os.Rename(filepath.Join(dir, "old2"), filepath.Join(dir, "old3")))
	try("remove", os.Remove(filepath.Join(dir, "old3")))
	try("remove a tree", os.RemoveAll(filepath.Join(dir, "tree")))
	try("make it again", os.Mkdir(filepath.Join(dir, "tree"), 0o700))
	if left := names(filepath.Join(dir, "tree")); len(left) > 0 {
		failed("the tree in %s has still %v", dir, left)
	}
}
