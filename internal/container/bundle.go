package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth"
	"berth/internal/cgroup"
	"berth/internal/crash"
	"berth/internal/oci"
	"berth/internal/rootfs"
)

// group is a container's cgroup.
func (s *Service) group(id string) cgroup.Group { return s.mode.Group("/berth/" + id) }

// spec is what the runtime is told of a container whose namespaces are at paths.
func (s *Service) spec(ctx context.Context, c *berth.Container, netns, pidns string) (*specs.Spec, error) {
	root, err := s.root(ctx, c)
	if err != nil {
		return nil, err
	}
	h := oci.Host{
		Arch: runtime.GOARCH, Kernel: kernelRelease(), CPUs: runtime.NumCPU(),
		Rootfs: root.Path, Cgroup: s.group(c.ID).String(), PidNS: pidns,
		Hosts:      filepath.Join(s.dir(c.ID), hostsFile),
		ResolvConf: filepath.Join(s.dir(c.ID), resolvFile),
		Hostname:   filepath.Join(s.dir(c.ID), hostnameFile),
		Init:       initProgram(), SwapLimit: s.mode.Swap,
		AppArmor: enabled("/sys/module/apparmor/parameters/enabled"), SELinux: exists("/sys/fs/selinux/enforce"),
	}
	if netns != newNamespace {
		h.NetNS = netns
	}
	wish, err := volumes(*c, root.Path)
	if err != nil {
		return nil, err
	}
	if err := look(&wish, &h); err != nil {
		return nil, err
	}
	spec, err := oci.Spec(wish, h)
	if err != nil || c.Rootfs != hostRoot {
		return spec, err
	}
	spec.Linux.MaskedPaths = append(spec.Linux.MaskedPaths, root.Masked...)
	spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return m.Type == "sysfs" })
	return spec, nil
}

// look adds to h what has to be looked up on this host.
func look(c *berth.Container, h *oci.Host) (err error) {
	if h.User, err = oci.ResolveUser(h.Rootfs, c.Process.User, c.Process.Groups); err != nil {
		return err
	}
	if h.Caps, err = oci.Capabilities(); err != nil {
		return err
	}
	for _, m := range c.Mounts {
		if m.Make && !exists(m.Source) {
			if err := os.MkdirAll(m.Source, 0o755); err != nil {
				return fmt.Errorf("mount at %s: %w", m.Target, err)
			}
		}
	}
	if h.Files, err = oci.Sources(c.Mounts); err != nil {
		return err
	}
	nodes := []string{}
	for _, d := range c.Devices {
		nodes = append(nodes, d.Source)
	}
	for _, t := range slices.Concat(c.Limits.DeviceReadBps, c.Limits.DeviceWriteBps) {
		nodes = append(nodes, t.Device)
	}
	if c.Security.Privileged {
		nodes = append(nodes, "/dev")
	}
	if h.Devices, err = oci.Devices(nodes...); err != nil {
		return err
	}
	if profile := c.Security.Seccomp; profile != "" && profile != "unconfined" {
		h.Seccomp, err = os.ReadFile(profile)
	}
	return err
}

// hostRoot is the root file system of a container that sees this host's own
// programs.
const hostRoot = "host"

// layers is where a container whose root is made for it keeps what it writes.
func (s *Service) layers(id string) string { return filepath.Join(s.dir(id), "root") }

// made reports whether a container's root is made for it.
func made(c *berth.Container) bool { return c.Rootfs == hostRoot || c.ImageID != "" }

// root mounts what is a container's "/".
func (s *Service) root(ctx context.Context, c *berth.Container) (rootfs.Root, error) {
	switch {
	case c.ImageID != "":
		path, err := s.imageRoot(ctx, c)
		if err == nil {
			err = rootfs.OwnDev(path)
		}
		return rootfs.Root{Path: path}, err
	case c.Rootfs == hostRoot:
		return rootfs.Mount(s.layers(c.ID), rootfs.Options{Expose: c.Expose, ReadOnly: c.ReadOnly})
	}
	if info, err := os.Lstat(filepath.Join(c.Rootfs, "dev")); err == nil && !info.IsDir() {
		// It is the user's; an image's gives way (rootfs.OwnDev).
		return rootfs.Root{}, fmt.Errorf("root file system %s: its /dev is no directory, and the runtime would write where it leads: %w", c.Rootfs, berth.ErrInvalid)
	}
	return rootfs.Root{Path: c.Rootfs}, nil
}

// imageRoot mounts the layers of a container's image, or copies them once where
// that cannot be.
func (s *Service) imageRoot(ctx context.Context, c *berth.Container) (string, error) {
	whole := s.copied(c.ID)
	if exists(whole) {
		return whole, nil
	}
	path := ""
	lower, err := s.o.Images.Lower(ctx, c.ImageID)
	if err == nil {
		path, err = rootfs.MountImage(s.layers(c.ID), lower)
	}
	if !errors.Is(err, berth.ErrUnsupported) {
		return path, err
	}
	s.o.Notice(fmt.Sprintf("the files of image %s are copied for container %s: %v", c.Image, c.Name, err))
	fresh := whole + ".new" // renamed when it is whole
	if err := errors.Join(os.MkdirAll(s.layers(c.ID), 0o700), os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755)); err != nil {
		return "", err
	}
	if err := s.o.Images.Copy(ctx, c.ImageID, fresh); err != nil {
		return "", errors.Join(err, os.RemoveAll(fresh))
	}
	crash.Point("container.copied")
	return whole, os.Rename(fresh, whole)
}

// copied is where the files of a container's image are, if they were copied.
func (s *Service) copied(id string) string { return filepath.Join(s.layers(id), "copy") }

// volumes makes the directories that a container's image wants writable: in a
// root that is read-only each is laid over itself. They live and end with the
// container, as all that it writes.
func volumes(c berth.Container, root string) (berth.Container, error) {
	var list []berth.Mount
	for _, v := range c.Volumes {
		source, err := rootfs.Directory(root, v)
		if err != nil {
			return c, fmt.Errorf("volume %s of image %s: %w", v, c.Image, err)
		}
		list = append(list, berth.Mount{Type: "bind", Source: source, Target: v})
	}
	if c.ReadOnly {
		c.Mounts = append(list, c.Mounts...)
	}
	return c, nil
}

// opens is the error of what would open a container of hostRoot to the host
// (docs/decisions/0013).
func opens(what, why string) error {
	return fmt.Errorf("--rootfs host with %s: %s: %w", what, why, berth.ErrInvalid)
}

const (
	wholeRoot = "its root would be the host's"
	hostsPids = "the host's processes lead to its files"
)

// boxed refuses a wish that opens a container of hostRoot.
func boxed(c berth.Container) error {
	switch {
	case c.Security.Privileged:
		return opens("--privileged", wholeRoot)
	case c.PidMode == "host":
		return opens("--pid host", hostsPids)
	case c.Security.Seccomp != "":
		return opens("--security-opt seccomp="+c.Security.Seccomp, "Berth's own profile keeps the keyrings of the host's users, which no namespace divides")
	}
	for _, name := range c.Security.CapAdd {
		switch strings.TrimPrefix(strings.ToUpper(name), "CAP_") {
		case "ALL", "SYS_ADMIN", "DAC_READ_SEARCH":
			return opens("--cap-add "+name, "it leads around the permissions of the host's files")
		case "SYS_MODULE", "SYS_RAWIO", "BPF", "PERFMON", "SYSLOG":
			return opens("--cap-add "+name, "it leads into the host's kernel")
		}
	}
	return nil
}

// boxedPids refuses a namespace of pids that is the host's, as of another
// container that has it.
func boxedPids(c berth.Container, pidns string) error {
	if c.Rootfs != hostRoot || pidns == "" {
		return nil
	}
	there, err := os.Stat(pidns)
	if err != nil {
		return err
	}
	here, err := os.Stat("/proc/self/ns/pid")
	if err == nil && os.SameFile(there, here) {
		err = opens("--pid "+c.PidMode, hostsPids)
	}
	return err
}

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
	// runc's words begin with small letters and crun's, which are the C library's, with capitals.
	switch text := strings.ToLower(err.Error()); {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "exec") && strings.Contains(text, "no such file"):
		return 127
	case strings.Contains(text, "exec") && strings.Contains(text, "permission denied"), strings.Contains(text, "is a directory"),
		strings.Contains(text, "open executable: operation not permitted"): // crun, of a directory
		return 126
	}
	return 125
}
