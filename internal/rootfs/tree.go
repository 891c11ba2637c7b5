package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"berth"

	"golang.org/x/sys/unix"
)

// A tree is a directory of the host that is seen inside: one file system,
// without what is mounted below it.
type tree struct {
	path    string // inside, and on the host as its user names it
	source  string // on the host, without symbolic links
	exposed bool
	mounted bool // below another one
	stat    unix.Stat_t
}

// A link is an allow-listed name that is a symbolic link: /bin → usr/bin.
type link struct{ name, target string }

// trees lists what of the host below "/" at host is seen inside, a tree before
// what is below it.
func trees(host string, expose []string) ([]tree, []link, error) {
	entries, err := os.ReadDir(host)
	if err != nil {
		return nil, nil, err
	}
	var (
		found []tree
		links []link
	)
	for _, e := range entries {
		if !allowed(e.Name()) {
			continue
		}
		path := "/" + e.Name()
		source, err := filepath.EvalSymlinks(filepath.Join(host, path))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a dangling link
		} else if err != nil {
			return nil, nil, err
		}
		if e.Type()&fs.ModeSymlink != 0 && allowListed(host, source) {
			target, err := os.Readlink(filepath.Join(host, path))
			if err != nil {
				return nil, nil, err
			}
			links = append(links, link{e.Name(), target})
			continue
		}
		found = append(found, tree{path: path, source: source})
	}
	for _, path := range expose {
		t, err := exposed(host, path)
		if err != nil {
			return nil, nil, err
		}
		if filepath.Dir(t.path) == "/" && allowed(t.path[1:]) {
			// It is there already. But it was asked for: see open.
			for i := range found {
				found[i].exposed = found[i].exposed || found[i].path == t.path
			}
			continue
		}
		found = append(found, t)
	}
	found, err = open(found)
	if err != nil {
		return nil, nil, err
	}
	found, err = withMounts(found)
	return found, links, err
}

// allowed reports whether an entry of "/" is on the allow-list.
func allowed(name string) bool {
	return slices.Contains([]string{"usr", "bin", "sbin", "opt", "etc"}, name) || strings.HasPrefix(name, "lib")
}

// allowListed reports whether a path without symbolic links is below a
// directory of the allow-list.
func allowListed(host, path string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(host, "/")+"/")
	first, _, _ := strings.Cut(rest, "/")
	info, err := os.Lstat(filepath.Join(host, first))
	return ok && allowed(first) && err == nil && info.IsDir()
}

// exposed is the tree of a path that is to be exposed.
func exposed(host, path string) (tree, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
		return tree{}, fmt.Errorf("expose %s: it takes an absolute path below /: %w", path, berth.ErrInvalid)
	}
	path = filepath.Clean(path)
	for _, own := range []string{"/proc", "/sys", "/dev"} {
		if path == own || strings.HasPrefix(path, own+"/") {
			return tree{}, fmt.Errorf("expose %s: a container has its own %s: %w", path, own, berth.ErrInvalid)
		}
	}
	source, err := filepath.EvalSymlinks(filepath.Join(host, path))
	if errors.Is(err, fs.ErrNotExist) {
		return tree{}, fmt.Errorf("expose %s: there is no such directory: %w", path, berth.ErrInvalid)
	} else if err != nil {
		return tree{}, fmt.Errorf("expose %s: %w", path, err)
	}
	// Where links of the allow-list lead is known inside: what they lead to is
	// needed, not their name (/lib/x, /usr/local/data → /data).
	if dir, err := filepath.EvalSymlinks(filepath.Dir(filepath.Join(host, path))); err == nil && allowListed(host, dir) {
		path = "/" + strings.TrimPrefix(strings.TrimPrefix(source, host), "/")
	}
	return tree{path: path, source: source, exposed: true}, nil
}

// open drops the trees that are part of another one and those that an
// unprivileged user cannot enter. Such a one that was asked for is an error.
func open(all []tree) ([]tree, error) {
	byPath(all)
	var kept []tree
	for _, t := range all {
		if slices.ContainsFunc(kept, func(k tree) bool {
			return below(t.path, k.path) || t.exposed && below(t.source, k.source) && t.path == t.source
		}) {
			continue
		}
		if err := unix.Stat(t.source, &t.stat); err != nil {
			return nil, fmt.Errorf("look at %s: %w", t.source, err)
		}
		switch {
		case t.enters():
			kept = append(kept, t)
		case !t.exposed:
		case !t.isDir():
			return nil, fmt.Errorf("expose %s: it is not a directory: use -v: %w", t.path, berth.ErrInvalid)
		default:
			return nil, fmt.Errorf("expose %s: it is closed to other users (mode %04o): use -v: %w", t.path, t.stat.Mode&0o7777, berth.ErrInvalid)
		}
	}
	return kept, nil
}

func (t tree) isDir() bool { return t.stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// enters reports whether an unprivileged user can enter the directory.
func (t tree) enters() bool { return t.isDir() && t.stat.Mode&0o005 == 0o005 }

func byPath(all []tree) {
	slices.SortFunc(all, func(a, b tree) int { return strings.Compare(a.path, b.path) })
}

// below reports whether a path is another one or below it.
func below(path, other string) bool {
	return path == other || strings.HasPrefix(path, strings.TrimSuffix(other, "/")+"/")
}

// notFiles are kinds of file systems that hold no files of the host.
var notFiles = []string{
	"proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "autofs", "mqueue", "hugetlbfs", "debugfs", "tracefs",
	"securityfs", "configfs", "pstore", "bpf", "binfmt_misc", "rpc_pipefs", "nsfs", "fusectl", "efivarfs",
}

// withMounts adds what is mounted below the trees.
func withMounts(trees []tree) ([]tree, error) {
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	all := slices.Clone(trees)
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) == 0 || slices.Contains(notFiles, kind[0]) {
			continue
		}
		at := unescape(fields[4])
		for _, t := range trees {
			if at == t.source || !below(at, t.source) {
				continue
			}
			// Only what is reached by its path, which is one of several that are
			// mounted there, and none below another mount.
			id, _ := strconv.ParseUint(fields[0], 10, 64)
			m := tree{path: t.path + strings.TrimPrefix(at, t.source), source: at, mounted: true}
			if !reaches(at, id) {
				continue
			}
			if err := unix.Stat(at, &m.stat); err != nil {
				return nil, fmt.Errorf("look at %s: %w", at, err)
			}
			// A mounted file, as /etc/hosts in a container, is left out.
			if m.enters() {
				all = append(all, m)
			}
		}
	}
	byPath(all)
	return all, nil
}

// reaches reports whether a path leads to the root of a mount.
func reaches(path string, mount uint64) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st)
	return err == nil && st.Mnt_id == mount && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// unescape reads a path of mountinfo, which writes space, tab, newline and
// backslash as three octal digits.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
