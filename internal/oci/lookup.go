package oci

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"berth"
)

// maxAccounts bounds a passwd or group file of a root that is not trusted.
const maxAccounts = 16 << 20

// ResolveUser looks up who a process of a container runs as, in the files of
// its own root: user is NAME|UID[:NAME|GID], "" is root; groups are further
// ones. A number needs no entry. Errors match [berth.ErrNotFound] if a name is
// in no file, and [berth.ErrInvalid] if it cannot be one.
func ResolveUser(rootfs, user string, groups []string) (User, error) {
	passwd, err := accounts(rootfs, "etc/passwd", 7)
	if err != nil {
		return User{}, err
	}
	group, err := accounts(rootfs, "etc/group", 4)
	if err != nil {
		return User{}, err
	}
	return resolve(user, groups, passwd, group)
}

// accounts are the lines of a passwd or group file with all their fields. A
// root may have no such file. Nothing in the root leads out of it, and a pipe
// in the file's place does not hold us up.
func accounts(rootfs, name string, fields int) ([][]string, error) {
	f, err := openIn(rootfs, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s in %s: %w", name, rootfs, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s in %s: %w: it is not a file", name, rootfs, berth.ErrInvalid)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
	if err != nil {
		return nil, fmt.Errorf("read %s in %s: %w", name, rootfs, err)
	}
	if len(data) > maxAccounts {
		return nil, fmt.Errorf("read %s in %s: %w: more than 16 MiB", name, rootfs, berth.ErrInvalid)
	}
	var lines [][]string
	for line := range strings.Lines(string(data)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); len(f) >= fields && !strings.HasPrefix(line, "#") {
			lines = append(lines, f)
		}
	}
	return lines, nil
}

func openIn(rootfs, name string) (*os.File, error) {
	dir, err := os.Open(rootfs)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), name, &how)
		switch {
		// The kernel gives up when something is renamed meanwhile.
		case err == unix.EAGAIN || err == unix.EINTR:
		case err != nil:
			return nil, err
		default:
			return os.NewFile(uintptr(fd), name), nil
		}
	}
}

// resolve finds a user in the fields of passwd (name, _, uid, gid, _, home, _)
// and group (name, _, gid, members).
func resolve(user string, groups []string, passwd, group [][]string) (User, error) {
	name, groupName, withGroup := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	u, login, err := findUser(name, passwd)
	if err != nil {
		return User{}, err
	}
	if withGroup && groupName != "" {
		if u.GID, err = findGroup(groupName, group); err != nil {
			return User{}, err
		}
	} else if login != "" {
		u.Groups = memberships(login, group)
	}
	for _, g := range groups {
		gid, err := findGroup(g, group)
		if err != nil {
			return User{}, err
		}
		if !slices.Contains(u.Groups, gid) {
			u.Groups = append(u.Groups, gid)
		}
	}
	return u, nil
}

// findUser finds a user by name or else by number; login is the name, "" for a
// number without an entry.
func findUser(name string, passwd [][]string) (u User, login string, err error) {
	for _, field := range []int{0, 2} {
		for _, f := range passwd {
			if f[field] != name {
				continue
			}
			uid, err1 := number(f[2])
			gid, err2 := number(f[3])
			if err := errors.Join(err1, err2); err != nil {
				return u, "", fmt.Errorf("entry of user %s: %w", name, err)
			}
			return User{UID: uid, GID: gid, Home: f[5]}, f[0], nil
		}
	}
	if u.UID, err = number(name); err == nil {
		return u, "", nil
	}
	if isNumber(name) {
		return u, "", fmt.Errorf("user %s: %w", name, err)
	}
	return u, "", fmt.Errorf("user %s in the container's /etc/passwd: %w", name, berth.ErrNotFound)
}

func findGroup(name string, group [][]string) (uint32, error) {
	for _, f := range group {
		if f[0] == name {
			gid, err := number(f[2])
			if err != nil {
				return 0, fmt.Errorf("entry of group %s: %w", name, err)
			}
			return gid, nil
		}
	}
	gid, err := number(name)
	switch {
	case err == nil:
		return gid, nil
	case isNumber(name):
		return 0, fmt.Errorf("group %s: %w", name, err)
	}
	return 0, fmt.Errorf("group %s in the container's /etc/group: %w", name, berth.ErrNotFound)
}

// memberships are the groups that name a user.
func memberships(login string, group [][]string) (gids []uint32) {
	for _, f := range group {
		if slices.Contains(strings.Split(f[3], ","), login) {
			if gid, err := number(f[2]); err == nil && !slices.Contains(gids, gid) {
				gids = append(gids, gid)
			}
		}
	}
	return gids
}

// number reads the number of a user or group: the kernel's last ones mean "none".
func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%w: %q is not a number up to 2147483647", berth.ErrInvalid, s)
	}
	return uint32(n), nil
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "-0123456789") == "" }

// Capabilities is the set that this process can give to a container, for
// [Host.Caps]: its bounding set. A host that is a container or a bounded
// service itself has not got all.
func Capabilities() (set uint64, err error) {
	for i := range allCaps {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0)
		if err == unix.EINVAL {
			break // the kernel knows no more
		}
		if err != nil {
			return 0, fmt.Errorf("read capability %s of this process: %w", allCaps[i], err)
		}
		set |= uint64(has) << i
	}
	return set, nil
}

// notDevices are the places of /dev that the container has of its own.
var notDevices = []string{"/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console", "/dev/ptmx"}

// Devices looks up device nodes of the host by their paths, for
// [Host.Devices]. Of a directory, all below it are meant; symbolic links are
// followed only where they are named. Errors match [berth.ErrNotFound] and, for
// what is no device, [berth.ErrInvalid].
func Devices(paths ...string) (map[string]Node, error) {
	nodes := map[string]Node{}
	for _, name := range paths {
		info, err := os.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("device %s: %w", name, berth.ErrNotFound)
		case err != nil:
			return nil, fmt.Errorf("device: %w", err)
		case info.IsDir():
			if err := walkDevices(name, nodes); err != nil {
				return nil, fmt.Errorf("devices in %s: %w", name, err)
			}
			continue
		}
		n, ok := node(info)
		if !ok {
			return nil, fmt.Errorf("device %s: %w: it is no device", name, berth.ErrInvalid)
		}
		nodes[name] = n
	}
	return nodes, nil
}

func walkDevices(dir string, nodes map[string]Node) error {
	// With a slash the directory is walked even if dir is a link to it.
	return filepath.WalkDir(filepath.Clean(dir)+"/", func(name string, d fs.DirEntry, err error) error {
		// It is gone since it was listed, as when a disk is pulled.
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if slices.Contains(notDevices, name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if n, ok := node(info); ok {
			nodes[name] = n
		}
		return nil
	})
}

// node is what a file is as a device, if it is one.
func node(info fs.FileInfo) (Node, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode()&fs.ModeDevice == 0 {
		return Node{}, false
	}
	n := Node{
		Type: "b", Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		Mode: info.Mode().Perm(), UID: st.Uid, GID: st.Gid,
	}
	if info.Mode()&fs.ModeCharDevice != 0 {
		n.Type = "c"
	}
	return n, true
}
