package oci

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth"
)

// ErrAbsent is that what a container is to have is not there: a user in its
// files, a source of a mount, a device. It matches [berth.ErrNotFound] too.
var ErrAbsent = fmt.Errorf("%w", berth.ErrNotFound)

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
func accounts(rootfs, name string, least int) ([][]string, error) {
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
	return fields(string(data), least), nil
}

// fields are those of each line that has enough of them.
func fields(text string, least int) (lines [][]string) {
	for line := range strings.Lines(text) {
		if f := strings.Split(strings.TrimSpace(line), ":"); len(f) >= least && !strings.HasPrefix(line, "#") {
			lines = append(lines, f)
		}
	}
	return lines
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
	return u, "", fmt.Errorf("user %s in the container's /etc/passwd: %w", name, ErrAbsent)
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
	return 0, fmt.Errorf("group %s in the container's /etc/group: %w", name, ErrAbsent)
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

// Sources looks at the sources of binds on the host: files are those that are
// no directories, for [Host.Files]. Errors match [berth.ErrNotFound] if there is
// none, and [berth.ErrInvalid] if what is mounted in it later cannot be shown,
// or seen, as a bind wants.
func Sources(mounts []berth.Mount) (files map[string]bool, err error) {
	files = map[string]bool{}
	for _, m := range mounts {
		if m.Type != "bind" {
			continue
		}
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, m.Source, unix.AT_STATX_SYNC_AS_STAT, unix.STATX_TYPE|unix.STATX_MNT_ID, &st)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil, fmt.Errorf("mount at %s: source %s: %w", m.Target, m.Source, ErrAbsent)
		}
		if err != nil {
			return nil, fmt.Errorf("mount at %s: source %s: %w", m.Target, m.Source, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			files[m.Source] = true
		}
		if err := propagates(m, st.Mnt_id); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// propagates looks whether the mount that a source is in is shared, if the bind
// needs it: the kernel would take the wish and do nothing.
func propagates(m berth.Mount, mount uint64) error {
	mode := rootPropagation([]berth.Mount{m})
	if mode == "" {
		return nil
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read the mounts of the host: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		// ID PARENT DEVICE ROOT POINT OPTIONS [shared:N] [master:N] - …
		f := strings.Fields(line)
		if len(f) < 7 || f[0] != strconv.FormatUint(mount, 10) {
			continue
		}
		for _, o := range f[6:] {
			if strings.HasPrefix(o, "shared:") || mode == "rslave" && strings.HasPrefix(o, "master:") {
				return nil
			}
			if o == "-" {
				break
			}
		}
		return invalid("mount at "+m.Target, "%s is in %s, which is not shared: mount --make-rshared %[2]s", m.Source, f[4])
	}
	return nil // it is gone meanwhile, and the runtime will tell
}
