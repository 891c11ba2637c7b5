package oci

import (
	"encoding/json"
	"errors"
	"flag"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// testHost has everything; a test takes away or adds.
func testHost() Host {
	return Host{
		Arch: "amd64", Kernel: "6.1.0-13-amd64", CPUs: 2,
		Rootfs: "/var/lib/berth/containers/c1/root", Cgroup: "/berth/c1",
		NetNS: "/run/netns/c1",
		Hosts: "/c1/hosts", ResolvConf: "/c1/resolv.conf", Hostname: "/c1/hostname",
		User: User{Home: "/root"},
		Devices: map[string]Node{
			"/dev/null":      {Type: "c", Major: 1, Minor: 3, Mode: 0o666},
			"/dev/fuse":      {Type: "c", Major: 10, Minor: 229, Mode: 0o666},
			"/dev/sda":       {Type: "b", Major: 8, Minor: 0, Mode: 0o660, GID: 6},
			"/dev/snd/timer": {Type: "c", Major: 116, Minor: 33, Mode: 0o660, GID: 29},
			"/dev/snd/seq":   {Type: "c", Major: 116, Minor: 1, Mode: 0o660, GID: 29},
		},
		Init: "/usr/bin/tini", SwapLimit: true,
	}
}

func testContainer() berth.Container {
	return berth.Container{ID: "c1", Name: "web", Hostname: "web", Process: berth.Process{Command: []string{"sh"}}}
}

// A change makes another container and host of the usual ones.
type change func(*berth.Container, *Host)

func with(f change) (berth.Container, Host) {
	c, h := testContainer(), testHost()
	f(&c, &h)
	return c, h
}

// golden are the containers of testdata. The lists of system calls are compared
// by TestProfile.
var golden = map[string]change{
	"plain": func(c *berth.Container, h *Host) {},
	"terminal": func(c *berth.Container, h *Host) {
		c.Process = berth.Process{
			Entrypoint: []string{"/bin/entry", "-x"}, Command: []string{"a", "b"}, Terminal: true, Dir: "/srv/../app",
			Env: []string{"A=1", "PATH=/bin", "HOME", "A=2", "EMPTY="},
		}
		h.Path = "/opt/bin"
	},
	"user": func(c *berth.Container, h *Host) {
		h.User = User{UID: 33, GID: 33, Groups: []uint32{33, 4, 27, 4}, Home: "/var/www"}
		c.Process.Ulimits = []berth.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}, {Name: "core", Soft: 0, Hard: -1}, {Name: "nofile", Soft: 1024, Hard: 4096}}
		c.Security.NoNewPrivileges = true
	},
	"privileged": func(c *berth.Container, h *Host) {
		c.Security.Privileged = true
		c.Devices = []berth.Device{{Source: "/dev/fuse", Target: "/dev/more/fuse"}}
	},
	"privileged read-only": func(c *berth.Container, h *Host) {
		c.Security, c.ReadOnly = berth.Security{Privileged: true, CapDrop: []string{"sys_time"}}, true
		h.Caps = 1<<25 | 1<<21 | 1
		h.Devices = nil
	},
	"read-only": func(c *berth.Container, h *Host) {
		c.ReadOnly = true
		c.Mounts = []berth.Mount{{Type: "tmpfs", Target: "/run"}, {Type: "tmpfs", Target: "/tmp", Options: []string{"exec", "size=16m", "mode=1777", "size=32m"}}}
	},
	"binds": func(c *berth.Container, h *Host) {
		h.Files = map[string]bool{"/data/file": true}
		c.Mounts = []berth.Mount{
			{Type: "bind", Source: "/data/deep", Target: "/a/b/c", Options: []string{"rshared"}},
			{Type: "bind", Source: "/data/", Target: "/a/b/", Options: []string{"ro", "nosuid"}},
			{Type: "bind", Source: "/data/one", Target: "/a/one", Options: []string{"bind", "ro", "z"}},
			{Type: "bind", Source: "/data/file", Target: "/a/file", Options: []string{"ro"}},
			{Type: "bind", Source: "/my/hosts", Target: "/etc/hosts"},
			{Type: "bind", Source: "/my/etc", Target: "/etc", Options: []string{"ro", "rw"}},
		}
	},
	"old kernel": func(c *berth.Container, h *Host) {
		h.Kernel = "5.10.0-9-arm64"
		h.Arch = "arm64"
		c.Mounts = []berth.Mount{{Type: "bind", Source: "/data", Target: "/data", Options: []string{"ro", "rslave"}}}
	},
	"instead of the default mounts": func(c *berth.Container, h *Host) {
		c.ShmSize = 1 << 20
		c.Mounts = []berth.Mount{
			{Type: "tmpfs", Target: "/dev/shm", Options: []string{"size=1g"}},
			{Type: "bind", Source: "/sys", Target: "/sys", Options: []string{"ro"}},
			{Type: "bind", Source: "/empty", Target: "/proc/acpi"},
			{Type: "bind", Source: "/empty", Target: "/proc/sys"},
		}
	},
	"the host's devices": func(c *berth.Container, h *Host) {
		c.Init, c.ShmSize = true, 1<<20
		c.Mounts = []berth.Mount{{Type: "bind", Source: "/dev", Target: "/dev"}}
	},
	"devices": func(c *berth.Container, h *Host) {
		c.Devices = []berth.Device{
			{Source: "/dev/fuse", Target: "/dev/fuse", Permissions: "rw"},
			{Source: "/dev/snd", Target: "/dev/sound"},
			{Source: "/dev/sda", Target: "/dev/xvda", Permissions: "r"},
		}
	},
	"limits": func(c *berth.Container, h *Host) {
		c.Limits = berth.Limits{
			Memory: 64 << 20, MemoryReservation: 32 << 20, NanoCPUs: 1.5e9, CPUShares: 512, CPUs: "0-1", Mems: "0", Pids: 100,
			BlkioWeight: 300, DeviceReadBps: []berth.Throttle{{Device: "/dev/sda", Rate: 1 << 20}}, DeviceWriteBps: []berth.Throttle{{Device: "/dev/sda", Rate: 2 << 20}},
		}
	},
	"limits without swap": func(c *berth.Container, h *Host) {
		h.SwapLimit = false
		c.Limits = berth.Limits{Memory: 64 << 20, CPUPeriod: 50000, CPUQuota: 25000}
	},
	"unlimited swap": func(c *berth.Container, h *Host) {
		c.Limits = berth.Limits{Memory: 64 << 20, MemorySwap: -1}
	},
	"no network": func(c *berth.Container, h *Host) {
		c.Net.Mode, h.NetNS = "none", ""
		c.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "1000", "fs.mqueue.msg_max": "20", "net.ipv4.ip_unprivileged_port_start": "1024"}
	},
	"the host's namespaces": func(c *berth.Container, h *Host) {
		c.Net.Mode, h.NetNS = "host", ""
		c.PidMode = "host"
		c.Security = berth.Security{Seccomp: "unconfined", AppArmor: "unconfined", CapAdd: []string{"ALL"}, CapDrop: []string{"CAP_SYS_ADMIN"}}
	},
	"another container's namespaces": func(c *berth.Container, h *Host) {
		c.Net.Mode, h.NetNS = "container:db", "/proc/7/ns/net"
		c.PidMode, h.PidNS = "container:db", "/proc/7/ns/pid"
		c.Security = berth.Security{AppArmor: "mine", CapAdd: []string{"net_admin", "CAP_CHOWN"}, CapDrop: []string{"all"}}
		h.AppArmor = true
	},
	"init": func(c *berth.Container, h *Host) { c.Init = true },
	"custom seccomp": func(c *berth.Container, h *Host) {
		c.Security.Seccomp, c.Security.Privileged = "/etc/mine.json", true
		h.Seccomp = []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
			{"name": "swapon", "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
			{"names": ["ptrace"], "action": "SCMP_ACT_KILL", "comment": "why", "excludes": {"caps": ["CAP_SYS_PTRACE"]}},
			{"names": ["bpf"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "6.1", "arches": ["amd64", "arm64"]}}]}`)
	},
}

func TestSpec(t *testing.T) {
	for name, f := range golden {
		t.Run(name, func(t *testing.T) {
			s, err := Spec(with(f))
			if err != nil {
				t.Fatal(err)
			}
			if s.Linux.Seccomp != nil && s.Linux.Seccomp.DefaultAction == specs.ActErrno {
				s.Linux.Seccomp.Syscalls = nil
			}
			compare(t, strings.NewReplacer(" ", "_", "'", "").Replace(name)+".json", s)
		})
	}
}

// compare compares a value with a golden file.
func compare(t *testing.T, name string, v any) {
	t.Helper()
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got, file := string(data)+"\n", filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

// TestSpecRefuses shows that no wish is dropped in silence, and what is read
// then.
func TestSpecRefuses(t *testing.T) {
	mount := func(m berth.Mount) change {
		return func(c *berth.Container, h *Host) { c.Mounts = append(c.Mounts, m) }
	}
	limit := func(l berth.Limits) change { return func(c *berth.Container, h *Host) { c.Limits = l } }
	sysctl := func(name string) change {
		return func(c *berth.Container, h *Host) { c.Sysctls = map[string]string{name: "1"} }
	}
	ulimit := func(u berth.Ulimit) change {
		return func(c *berth.Container, h *Host) { c.Process.Ulimits = []berth.Ulimit{u} }
	}
	profile := func(s string) change {
		return func(c *berth.Container, h *Host) { c.Security.Seccomp, h.Seccomp = "f", []byte(s) }
	}
	for want, f := range map[string]change{
		`root: invalid: "c1" is not an absolute path`:                                   func(c *berth.Container, h *Host) { h.Rootfs = "c1" },
		`cgroup: invalid: "" is not an absolute path`:                                   func(c *berth.Container, h *Host) { h.Cgroup = "" },
		`hostname: invalid: "a b" is not a name of at most 64 characters`:               func(c *berth.Container, h *Host) { c.Hostname = "a b" },
		`network mode: invalid: host has no namespace of its own, and /run/n was given`: func(c *berth.Container, h *Host) { c.Net.Mode, h.NetNS = "host", "/run/n" },
		`network mode: invalid: container:db, and no namespace was given`:               func(c *berth.Container, h *Host) { c.Net.Mode, h.NetNS = "container:db", "" },
		`network mode: invalid: ns:/x, and no namespace was given`:                      func(c *berth.Container, h *Host) { c.Net.Mode, h.NetNS = "ns:/x", "" },
		`pid mode: invalid: "hots" is not host or container:ID`:                         func(c *berth.Container, h *Host) { c.PidMode = "hots" },
		`pid mode: invalid: "container:db" does not go with the namespace ""`:           func(c *berth.Container, h *Host) { c.PidMode = "container:db" },
		`init: invalid: with pid mode host it would not be process 1`:                   func(c *berth.Container, h *Host) { c.PidMode, c.Init = "host", true },
		`init: invalid: this host has no such program: install tini`:                    func(c *berth.Container, h *Host) { c.Init, h.Init = true, "" },
		`command: invalid: there is none`:                                               func(c *berth.Container, h *Host) { c.Process.Command = nil },
		`command: invalid: "a\x00" has a zero byte`:                                     func(c *berth.Container, h *Host) { c.Process.Command = []string{"a\x00"} },
		`working directory: invalid: "srv" is not an absolute path`:                     func(c *berth.Container, h *Host) { c.Process.Dir = "srv" },
		`variable: invalid: "=x" is not NAME=VALUE`:                                     func(c *berth.Container, h *Host) { c.Process.Env = []string{"=x"} },
		`ulimit nofile: invalid: soft -1 is more than hard 5`:                           ulimit(berth.Ulimit{Name: "nofile", Soft: -1, Hard: 5}),
		`ulimit nofile: invalid: -2:5 is less than -1, which is none`:                   ulimit(berth.Ulimit{Name: "nofile", Soft: -2, Hard: 5}),
		`capability FLY: invalid: it cannot be added: there is none of this name`:       func(c *berth.Container, h *Host) { c.Security.CapAdd = []string{"FLY"} },
		`capability FLY: invalid: it cannot be dropped: there is none of this name`:     func(c *berth.Container, h *Host) { c.Security.CapDrop = []string{"FLY"} },
		`capability CAP_BPF: this host has not got it itself: unsupported by this kernel`: func(c *berth.Container, h *Host) {
			h.Caps, c.Security.CapAdd = 1, []string{"bpf"}
		},
		`profile mine: AppArmor is not enabled: unsupported by this kernel`:                          func(c *berth.Container, h *Host) { c.Security.AppArmor = "mine" },
		`sysctl kernel.panic: invalid: it is no setting of a namespace, so it would change the host`: sysctl("kernel.panic"),
		`sysctl net/ipv4/ip_forward: invalid: it is not a name like net.core.somaxconn`:              sysctl("net/ipv4/ip_forward"),
		`sysctl net..x: invalid: it is not a name like net.core.somaxconn`:                           sysctl("net..x"),
		`sysctl net.core.somaxconn: invalid: the network is the host's own`: func(c *berth.Container, h *Host) {
			c.Net.Mode, h.NetNS, c.Sysctls = "host", "", map[string]string{"net.core.somaxconn": "1"}
		},
		`mount at /: invalid: it has to be an absolute path, and not /`:                                          mount(berth.Mount{Type: "tmpfs", Target: "/"}),
		`mount at /a/../..: invalid: it has to be an absolute path, and not /`:                                   mount(berth.Mount{Type: "tmpfs", Target: "/a/../.."}),
		`mount at /a: invalid: type "nfs" is not bind or tmpfs`:                                                  mount(berth.Mount{Type: "nfs", Target: "/a"}),
		`mount at /a: invalid: the source "data" is not an absolute path`:                                        mount(berth.Mount{Type: "bind", Source: "data", Target: "/a"}),
		`mount at /a: invalid: a tmpfs has no source, and "/x" was given`:                                        mount(berth.Mount{Type: "tmpfs", Source: "/x", Target: "/a"}),
		`mount at /a: option "size=1": invalid: it is none of a bind`:                                            mount(berth.Mount{Type: "bind", Source: "/x", Target: "/a", Options: []string{"size=1"}}),
		`mount at /a: option "size=x": invalid: it is none of a tmpfs`:                                           mount(berth.Mount{Type: "tmpfs", Target: "/a", Options: []string{"size=x"}}),
		`mount at /a: option "rshared": invalid: it is none of a tmpfs`:                                          mount(berth.Mount{Type: "tmpfs", Target: "/a", Options: []string{"rshared"}}),
		`mount at /sys/firmware/efi: invalid: /sys/firmware is masked and would hide it: mount at /sys/firmware`: mount(berth.Mount{Type: "tmpfs", Target: "/sys/firmware/efi"}),
		`mount at /a/: invalid: there are two`: func(c *berth.Container, h *Host) {
			c.Mounts = []berth.Mount{{Type: "tmpfs", Target: "/a"}, {Type: "tmpfs", Target: "/a/"}}
		},
		`mount at /a: option Z: files are not labelled for SELinux here: unsupported by this kernel`: func(c *berth.Container, h *Host) {
			h.SELinux, c.Mounts = true, []berth.Mount{{Type: "bind", Source: "/x", Target: "/a", Options: []string{"Z"}}}
		},
		`size of /dev/shm: invalid: -1 is negative`:           func(c *berth.Container, h *Host) { c.ShmSize = -1 },
		`device /dev/none: invalid: this host has none there`: func(c *berth.Container, h *Host) { c.Devices = []berth.Device{{Source: "/dev/none"}} },
		`device /dev/fuse: invalid: permissions "rr" are not of r, w and m`: func(c *berth.Container, h *Host) {
			c.Devices = []berth.Device{{Source: "/dev/fuse", Permissions: "rr"}}
		},
		`rate of /dev/fuse: invalid: it is no disk of this host`:                               limit(berth.Limits{DeviceReadBps: []berth.Throttle{{Device: "/dev/fuse", Rate: 1}}}),
		`seccomp profile f: invalid: unexpected end of JSON input`:                             profile(""),
		`seccomp profile f: invalid: defaultAction: action ""`:                                 profile("{}"),
		`seccomp profile f: invalid: it has both architectures and archMap`:                    profile(`{"architectures":["SCMP_ARCH_X86"],"archMap":[{}]}`),
		`seccomp profile f: invalid: a rule has both name and names: a`:                        profile(`{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"name":"a","names":["b"]}]}`),
		`seccomp profile f: invalid: rule 1 is about no system call`:                           profile(`{"defaultAction":"SCMP_ACT_LOG","syscalls":[{}]}`),
		`seccomp profile f: invalid: rule of a: argument 6, operator "SCMP_CMP_EQ"`:            profile(`{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"name":"a","action":"SCMP_ACT_LOG","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}`),
		`seccomp profile f: invalid: rule of a: minKernel "new" is not like 4.8`:               profile(`{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"name":"a","action":"SCMP_ACT_LOG","includes":{"minKernel":"new"}}]}`),
		`default seccomp profile on "s390x": name one of your own: unsupported by this kernel`: func(c *berth.Container, h *Host) { h.Arch = "s390x" },
	} {
		_, err := Spec(with(f))
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
			continue
		}
		if !errors.Is(err, berth.ErrInvalid) && !errors.Is(err, berth.ErrUnsupported) {
			t.Errorf("%v matches no sentinel", err)
		}
	}
}

// TestSpecIsPure: what Spec is made of reads no disk and asks no kernel.
func TestSpecIsPure(t *testing.T) {
	for _, name := range []string{"spec.go", "host.go", "caps.go", "mounts.go", "devices.go", "limits.go", "seccomp.go", "profile.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if slices.Contains([]string{`"os"`, `"os/exec"`, `"syscall"`, `"net"`, `"time"`, `"golang.org/x/sys/unix"`, `"path/filepath"`, `"runtime"`}, i.Path.Value) {
				t.Errorf("%s imports %s", name, i.Path.Value)
			}
		}
	}
}
