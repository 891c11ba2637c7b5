package oci

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"berth"
)

// TestProfile: the filter by what it says, not by how it is written.
func TestProfile(t *testing.T) {
	allows := func(h Host, name string, caps ...string) bool {
		f := defaultProfile().filter(h, caps)
		for _, r := range f.Syscalls {
			if slices.Contains(r.Names, name) && r.Action == "SCMP_ACT_ALLOW" && len(r.Args) == 0 {
				return true
			}
		}
		return false
	}
	amd, arm := Host{Arch: "amd64"}, Host{Arch: "arm64"}
	for _, name := range strings.Fields("read openat execve futex ptrace chmod epoll_pwait2 landlock_restrict_self") {
		if !allows(amd, name) || !allows(arm, name) {
			t.Errorf("%s is not allowed", name)
		}
	}
	for _, name := range strings.Fields(`add_key keyctl request_key io_uring_setup io_uring_enter io_uring_register userfaultfd
		mount umount2 unshare setns clone clone3 bpf perf_event_open open_by_handle_at init_module kexec_load kexec_file_load
		reboot swapon swapoff pivot_root acct ioperm iopl settimeofday socket socketcall personality syslog vhangup
		nfsservctl uselib ustat sysfs quotactl fsopen move_mount kcmp pidfd_getfd process_madvise vm86 vm86old`) {
		if allows(amd, name) || allows(arm, name) {
			t.Errorf("%s is allowed", name)
		}
	}
	for cap, name := range map[string]string{
		"CAP_SYS_ADMIN": "mount", "CAP_SYS_CHROOT": "chroot", "CAP_SYS_NICE": "mbind", "CAP_SYS_TIME": "clock_settime",
		"CAP_SYSLOG": "syslog", "CAP_BPF": "bpf", "CAP_PERFMON": "perf_event_open", "CAP_SYS_PTRACE": "kcmp",
	} {
		if !allows(amd, name, cap) {
			t.Errorf("%s is not allowed with %s", name, cap)
		}
	}
	if !allows(amd, "arch_prctl") || allows(arm, "arch_prctl") || allows(amd, "set_tls") || !allows(arm, "set_tls") {
		t.Error("an architecture's own calls are another's")
	}
	seen := map[string]bool{}
	for _, name := range strings.Fields(always) {
		if seen[name] {
			t.Errorf("%s is listed twice", name)
		}
		seen[name] = true
	}
}

// TestCapabilitySets: what is added is there, what is dropped is not, and
// nothing comes of itself.
func TestCapabilitySets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		caps := rapid.SliceOfN(rapid.SampledFrom(append(slices.Clone(allCaps), "ALL")), 0, 4)
		s := berth.Security{Privileged: rapid.Bool().Draw(t, "privileged"), CapAdd: caps.Draw(t, "add"), CapDrop: caps.Draw(t, "drop")}
		got, err := capabilities(s, Host{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range allCaps {
			has := slices.Contains(got, c)
			added, dropped := slices.Contains(s.CapAdd, c), slices.Contains(s.CapDrop, c)
			all := s.Privileged || slices.Contains(s.CapAdd, "ALL")
			switch {
			case added && !has:
				t.Errorf("%s was added", c)
			case dropped && !added && has:
				t.Errorf("%s was dropped", c)
			case has && !added && !all && !slices.Contains(defaultCaps, c):
				t.Errorf("%s came of itself", c)
			}
		}
	})
}

func TestAs(t *testing.T) {
	s, err := Spec(testContainer(), testHost())
	if err != nil {
		t.Fatal(err)
	}
	p, before := *s.Process, strings.Join(s.Process.Env, " ")
	As(&p, User{UID: 33, GID: 33, Groups: []uint32{4}, Home: "/srv"})
	if p.Capabilities.Effective != nil || p.Capabilities.Permitted != nil || len(p.Capabilities.Bounding) != len(defaultCaps) {
		t.Errorf("user 33 has %+v", p.Capabilities)
	}
	if p.User.UID != 33 || !slices.Equal(p.User.AdditionalGids, []uint32{33, 4}) || !slices.Contains(p.Env, "HOME=/srv") {
		t.Errorf("it is %+v with %q", p.User, p.Env)
	}
	if strings.Join(s.Process.Env, " ") != before {
		t.Error("the environment of the first process has changed too")
	}
	As(&p, User{})
	if len(p.Capabilities.Effective) != len(defaultCaps) {
		t.Errorf("root has %+v", p.Capabilities)
	}
}

// TestMountOrder: what is below another mount comes after it, nothing is
// mounted twice, and what the user put somewhere is what is there.
func TestMountOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		targets := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{
			"/a", "/a/b", "/a/b/c", "/dev", "/dev/shm", "/dev/pts", "/etc", "/etc/hosts", "/sys", "/sys/fs/cgroup", "/proc", "/tmp/", "/dev/x",
		}), 0, 8, rapid.ID).Draw(t, "targets")
		c, h := testContainer(), testHost()
		c.Init, c.ReadOnly = rapid.Bool().Draw(t, "init"), rapid.Bool().Draw(t, "read-only")
		for _, target := range targets {
			c.Mounts = append(c.Mounts, berth.Mount{Type: "bind", Source: "/user", Target: target})
		}
		list, err := mounts(c, h)
		if err != nil {
			t.Fatal(err)
		}
		at := map[string]int{}
		for i, m := range list {
			if _, twice := at[m.Destination]; twice {
				t.Errorf("%s is mounted twice", m.Destination)
			}
			at[m.Destination] = i
		}
		for _, target := range targets {
			if i, ok := at[strings.TrimSuffix(target, "/")]; !ok || list[i].Source != "/user" {
				t.Errorf("the user's %s is not there", target)
			}
		}
		for a, i := range at {
			for b, j := range at {
				if strings.HasPrefix(b, a+"/") && i > j {
					t.Errorf("%s hides %s, which was there before", a, b)
				}
			}
		}
	})
}

// FuzzSpec: any wish, and any profile, is an error of ours or a configuration.
func FuzzSpec(f *testing.F) {
	for _, change := range golden {
		c, h := with(change)
		wish, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wish, h.Seccomp)
	}
	f.Fuzz(func(t *testing.T, wish, profile []byte) {
		var c berth.Container
		if json.Unmarshal(wish, &c) != nil {
			return
		}
		h := testHost()
		h.Seccomp = profile
		s, err := Spec(c, h)
		switch {
		case err != nil && !errors.Is(err, berth.ErrInvalid) && !errors.Is(err, berth.ErrUnsupported):
			t.Errorf("%v matches no sentinel", err)
		case err != nil:
			return
		}
		if _, err := json.Marshal(s); err != nil {
			t.Error(err)
		}
		if !c.Security.Privileged && (len(s.Linux.MaskedPaths) == 0 || s.Linux.Resources.Devices[0].Allow) {
			t.Error("it is as open as a privileged one")
		}
	})
}
