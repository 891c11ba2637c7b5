package container

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth"
	"berth/internal/cgroup"
	"berth/internal/oci"
)

// group is a container's cgroup.
func (s *Service) group(id string) cgroup.Group { return s.mode.Group("/berth/" + id) }

// spec is what the runtime is told of a container whose network namespace is at
// a path.
func (s *Service) spec(c *berth.Container, nsPath string) (*specs.Spec, error) {
	h := oci.Host{
		Arch: runtime.GOARCH, Kernel: kernelRelease(), CPUs: runtime.NumCPU(),
		Rootfs: c.Rootfs, Cgroup: s.group(c.ID).String(),
		Hosts:      filepath.Join(s.dir(c.ID), hostsFile),
		ResolvConf: filepath.Join(s.dir(c.ID), resolvFile),
		Hostname:   filepath.Join(s.dir(c.ID), hostnameFile),
		Init:       initProgram(), SwapLimit: s.mode.Swap,
		AppArmor: enabled("/sys/module/apparmor/parameters/enabled"), SELinux: exists("/sys/fs/selinux/enforce"),
	}
	if nsPath != newNamespace {
		h.NetNS = nsPath
	}
	var err error
	if h.User, err = oci.ResolveUser(h.Rootfs, c.Process.User, c.Process.Groups); err != nil {
		return nil, err
	}
	if h.Caps, err = oci.Capabilities(); err != nil {
		return nil, err
	}
	if h.Files, err = oci.Sources(c.Mounts); err != nil {
		return nil, err
	}
	nodes := []string{}
	for _, d := range c.Devices {
		nodes = append(nodes, d.Source)
	}
	for _, t := range append(append([]berth.Throttle{}, c.Limits.DeviceReadBps...), c.Limits.DeviceWriteBps...) {
		nodes = append(nodes, t.Device)
	}
	if c.Security.Privileged {
		nodes = append(nodes, "/dev")
	}
	if h.Devices, err = oci.Devices(nodes...); err != nil {
		return nil, err
	}
	if profile := c.Security.Seccomp; profile != "" && profile != "unconfined" {
		if h.Seccomp, err = os.ReadFile(profile); err != nil {
			return nil, err
		}
	}
	return oci.Spec(*c, h)
}

// unprepare takes away what prepare made beside files.
func (s *Service) unprepare(*berth.Container) error { return nil }

func kernelRelease() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease") // best effort: unknown is old
	return strings.TrimSpace(string(b))
}

// initProgram is what --init runs, as docker's: tini, or podman's catatonit.
func initProgram() string {
	for _, p := range []string{"/usr/bin/tini-static", "/usr/bin/tini", "/usr/libexec/podman/catatonit", "/usr/bin/catatonit"} {
		if exists(p) {
			return p
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func enabled(path string) bool {
	b, err := os.ReadFile(path)
	return err == nil && strings.HasPrefix(string(b), "Y")
}

// failureCode is the exit status of a container that could not start, as
// docker's: 127 for a command that was not found, 126 for one that cannot be
// run, else 125.
func failureCode(err error) int {
	switch text := err.Error(); {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "exec") && strings.Contains(text, "no such file"):
		return 127
	case strings.Contains(text, "exec") && strings.Contains(text, "permission denied"), strings.Contains(text, "is a directory"):
		return 126
	}
	return 125
}
