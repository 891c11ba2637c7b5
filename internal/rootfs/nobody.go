package rootfs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// nobody is a user and a group that own nothing. The account of that name will
// not do: files of network file systems and of some programs are its own.
// Numbers from 2^31 on are given to nobody (systemd's UIDs-GIDs.md).
const nobody = 0xfffffffd

// asNobody runs f with the rights of an unprivileged user, but for the mount
// itself. An overlay keeps the credentials of who mounts it, and looks at what
// lies below with them for ever (overlayfs.rst, "Permission model"). The thread
// must be one that is given up: it loses its groups, and after an error it is
// of no use.
func asNobody(f func() error) error {
	var all [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &all[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	// A change of the uid makes the whole process undumpable, whose /proc/self
	// then is root's of the initial user namespace.
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("read whether the process is dumpable: %w", err)
	}
	// Without this the change of the uid takes the capabilities for good.
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := become(nobody); err != nil {
		return err
	}
	mount := all
	mount[0].Effective, mount[1].Effective = 1<<unix.CAP_SYS_ADMIN, 0
	if err := unix.Capset(&header, &mount[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	failed := f()
	if err := unix.Capset(&header, &all[0]); err != nil {
		return fmt.Errorf("take capabilities back: %w", err)
	}
	if err := become(0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable&1), 0, 0, 0); err != nil {
		return fmt.Errorf("make the process dumpable again: %w", err)
	}
	return failed
}

// become changes all ids of the thread, the real and the saved too: a FUSE file
// system asks for all three. The system calls are made by hand because the
// library's change every thread.
func become(id uintptr) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("drop groups: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, id, id, id); errno != 0 {
		return fmt.Errorf("change the group: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, id, id, id); errno != 0 {
		return fmt.Errorf("change the user: %w", errno)
	}
	return nil
}
