package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// execIn replaces the process by a command inside a network namespace. /sys is
// mounted anew to show its links, and files below /etc/netns/NAME lie over
// those of /etc, in a mount namespace of the command's own, as ip-netns(8)
// does.
func execIn(ns *os.File, name string, command []string) error {
	fail := func(status int, err error) error {
		return &exit{status, fmt.Errorf("exec %s: %w", command[0], err)}
	}
	// Never unlocked: execve takes the thread's namespaces along.
	runtime.LockOSThread()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fail(125, os.NewSyscallError("setns", err))
	}
	if err := ownMounts(name); err != nil {
		return fail(125, err)
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return fail(127, errors.New("command not found"))
		}
		return fail(126, err)
	}
	err = unix.Exec(path, command, os.Environ())
	if errors.Is(err, unix.ENOENT) {
		return fail(127, err)
	}
	return fail(126, err)
}

func ownMounts(name string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "none", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	// The cgroup tree lies below /sys: it is kept beside the new one.
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, ""); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount /sys: %w", err)
	}
	over := filepath.Join("/etc/netns", filepath.Base(name))
	entries, err := os.ReadDir(over)
	if err != nil {
		return nil // there is none for this sandbox
	}
	for _, e := range entries {
		if err := unix.Mount(filepath.Join(over, e.Name()), filepath.Join("/etc", e.Name()), "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s over /etc: %w", filepath.Join(over, e.Name()), err)
		}
	}
	return nil
}
