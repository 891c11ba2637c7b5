package oci

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"berth"
)

// rootWith makes a root with these files; a value "-> X" is a link to X.
func rootWith(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if to, ok := strings.CutPrefix(text, "-> "); ok {
			if err := os.Symlink(to, file); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

var accountsOfTest = map[string]string{
	"etc/passwd": "# comment:x:9:9::/:\nroot:x:0:0:root:/root:/bin/sh\nshort:x:1\nwww:x:33:33::/srv:/bin/sh\n4:x:44:44::/four:\nbad:x:-1:0::/:\n",
	"etc/group":  "root:x:0:\nadm:x:4:www,root\nwww:x:33:www\ntape:x:26:other,www\nwheel:x:99999999999:\n",
}

func TestResolveUser(t *testing.T) {
	full, empty := rootWith(t, accountsOfTest), t.TempDir()
	for _, tt := range []struct {
		root, user string
		groups     []string
		want       User
	}{
		{full, "", nil, User{Home: "/root", Groups: []uint32{4}}},
		{full, "www", nil, User{UID: 33, GID: 33, Groups: []uint32{4, 33, 26}, Home: "/srv"}},
		{full, "33", nil, User{UID: 33, GID: 33, Groups: []uint32{4, 33, 26}, Home: "/srv"}},
		{full, "www:adm", nil, User{UID: 33, GID: 4, Home: "/srv"}},
		{full, "www:7", []string{"tape", "12", "tape"}, User{UID: 33, GID: 7, Groups: []uint32{26, 12}, Home: "/srv"}},
		{full, "www:", nil, User{UID: 33, GID: 33, Groups: []uint32{4, 33, 26}, Home: "/srv"}},
		{full, ":26", nil, User{GID: 26, Home: "/root"}},
		{full, "4", nil, User{UID: 44, GID: 44, Home: "/four"}}, // a name first
		{full, "1000", nil, User{UID: 1000}},
		{empty, "", nil, User{}},
		{empty, "1000:1000", []string{"5"}, User{UID: 1000, GID: 1000, Groups: []uint32{5}}},
	} {
		got, err := ResolveUser(tt.root, tt.user, tt.groups)
		if err != nil {
			t.Errorf("%q: %v", tt.user, err)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%q (-want +got):\n%s", tt.user, d)
		}
	}
}

func TestResolveUserRefuses(t *testing.T) {
	full := rootWith(t, accountsOfTest)
	for _, tt := range []struct {
		user   string
		groups []string
		is     error
		want   string
	}{
		{"nobody", nil, berth.ErrNotFound, "user nobody in the container's /etc/passwd: not found"},
		{"www:none", nil, berth.ErrNotFound, "group none in the container's /etc/group: not found"},
		{"www", []string{"none"}, berth.ErrNotFound, "group none in the container's /etc/group: not found"},
		{"2147483648", nil, berth.ErrInvalid, `user 2147483648: invalid: "2147483648" is not a number up to 2147483647`},
		{"-5", nil, berth.ErrInvalid, `user -5: invalid: "-5" is not a number up to 2147483647`},
		{"0:99999999999", nil, berth.ErrInvalid, `group 99999999999: invalid: "99999999999" is not a number up to 2147483647`},
		{"bad", nil, berth.ErrInvalid, `entry of user bad: invalid: "-1" is not a number up to 2147483647`},
		{"0:wheel", nil, berth.ErrInvalid, `entry of group wheel: invalid: "99999999999" is not a number up to 2147483647`},
	} {
		_, err := ResolveUser(full, tt.user, tt.groups)
		if !errors.Is(err, tt.is) || err.Error() != tt.want {
			t.Errorf("%q: %v, want %s", tt.user, err, tt.want)
		}
	}
}

// TestResolveUserStaysInside: whatever a root's files are, the host's own are
// not read, and nothing hangs.
func TestResolveUserStaysInside(t *testing.T) {
	host := rootWith(t, map[string]string{"passwd": "evil:x:7:7::/host:\n"})
	evil := filepath.Join(host, "passwd")
	for name, files := range map[string]map[string]string{
		"absolute link": {"etc/passwd": "-> " + evil},
		"climbing link": {"etc/passwd": "-> ../../../../../../../../../../.." + evil},
		"linked etc":    {"etc": "-> " + host},
		"loop":          {"etc/passwd": "-> passwd"},
		"magic link":    {"etc/passwd": "-> /proc/self/root" + evil},
		"etc is a file": {"etc": "evil:x:7:7::/host:\n"},
	} {
		if u, err := ResolveUser(rootWith(t, files), "evil", nil); err == nil {
			t.Errorf("%s: %+v was read", name, u)
		}
	}
	inside := rootWith(t, map[string]string{"etc/passwd": "-> /usr/share/passwd", "usr/share/passwd": "u:x:5:5::/u:\n"})
	if u, err := ResolveUser(inside, "u", nil); err != nil || u.UID != 5 {
		t.Errorf("a link within the root: %+v, %v", u, err)
	}
	pipe := rootWith(t, map[string]string{"etc/group": ""})
	if err := unix.Mkfifo(filepath.Join(pipe, "etc/passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ResolveUser(pipe, "0", nil); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("a pipe: %v, want ErrInvalid", err)
	}
	big := rootWith(t, map[string]string{"etc/passwd": ""})
	if err := os.Truncate(filepath.Join(big, "etc/passwd"), 1<<40); err != nil {
		t.Skip(err)
	}
	if _, err := ResolveUser(big, "0", nil); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("a file of 1 TiB: %v, want ErrInvalid", err)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("www:adm", "tape", accountsOfTest["etc/passwd"], accountsOfTest["etc/group"])
	f.Add(":", "", "a:::::::::", ":::")
	f.Fuzz(func(t *testing.T, user, group, passwd, groups string) {
		u, err := resolve(user, []string{group}, fields(passwd, 7), fields(groups, 4))
		if err == nil && (u.UID > 1<<31-1 || u.GID > 1<<31-1) {
			t.Errorf("%q: %+v", user, u)
		}
	})
}

func TestDevices(t *testing.T) {
	got, err := Devices("/dev/null", "/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	if n := got["/dev/null"]; n.Type != "c" || n.Major != 1 || n.Minor != 3 || n.Mode != 0o666 {
		t.Errorf("/dev/null is %+v", n)
	}
	all, err := Devices("/dev")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := all["/dev/null"]; !ok {
		t.Errorf("/dev has no null: %v", all)
	}
	for name := range all {
		if strings.HasPrefix(name, "/dev/pts/") || name == "/dev/ptmx" || name == "/dev/console" {
			t.Errorf("%s is not the host's to give", name)
		}
	}
	link := filepath.Join(t.TempDir(), "nil")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	if got, err := Devices(link); err != nil || got[link].Minor != 3 {
		t.Errorf("a link: %v, %v", got, err)
	}
	if _, err := Devices("/dev/none"); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("none: %v", err)
	}
	if _, err := Devices("/etc/passwd"); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("a file: %v", err)
	}
}

func TestSources(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	bind := func(source string, options ...string) berth.Mount {
		return berth.Mount{Type: "bind", Source: source, Target: "/t", Options: options}
	}
	got, err := Sources([]berth.Mount{bind(dir), bind(file), {Type: "tmpfs", Target: "/x"}})
	if d := cmp.Diff(map[string]bool{file: true}, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	for _, none := range []string{dir + "/none", file + "/none"} {
		if _, err := Sources([]berth.Mount{bind(none)}); !errors.Is(err, berth.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", none, err)
		}
	}
	// /proc/sys is where a host of any kind has no shared mount, or one.
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if f[4] != "/proc" {
			continue
		}
		shared := strings.Contains(line, " shared:")
		if _, err := Sources([]berth.Mount{bind("/proc/1", "rshared")}); (err == nil) != shared {
			t.Errorf("rshared of /proc (%s): %v", line, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	set, err := Capabilities()
	if err != nil || set == 0 {
		t.Errorf("%x, %v", set, err)
	}
}
