package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// first is the first process of the run's own process namespace: monitors, which
// nobody is the parent of, are reaped by it, and nothing outlives it. It starts
// this program once more, which measures, and takes away what that leaves.
func first() error {
	err := errors.Join(
		unix.Mount("", "/", "none", unix.MS_PRIVATE|unix.MS_REC, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
	)
	if err != nil {
		return err
	}
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr, os.NewFile(3, "berth"), os.NewFile(4, "berth-cni")}
	child, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Files: files})
	if err != nil {
		return err
	}
	var status unix.WaitStatus
	for pid := 0; pid != child.Pid; {
		if pid, err = unix.Wait4(-1, &status, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("wait4", err)
		}
	}
	_ = unix.Kill(-1, unix.SIGKILL) // ESRCH: nobody is left
	for err = nil; !errors.Is(err, unix.ECHILD); {
		_, err = unix.Wait4(-1, nil, 0, nil)
	}
	sweep()
	if status != 0 {
		// It has said why.
		os.Exit(1)
	}
	return nil
}

// sweep removes the cgroups of containers that a run left which did not come to
// its end. They are known by their records.
func sweep() {
	for records, group := range map[string]string{
		"/run/bed-*/root/containers/*":            "berth/%s",
		"/run/podman-*/root/overlay-containers/*": "libpod_parent/libpod-%s",
	} {
		dirs, _ := filepath.Glob(records) // the patterns are good
		for _, d := range dirs {
			id := fmt.Sprintf(group, filepath.Base(d))
			left, _ := filepath.Glob("/sys/fs/cgroup/*/" + id)
			for _, g := range append(left, "/sys/fs/cgroup/"+id) {
				os.Remove(g) // best effort: it is empty, or was not there
			}
		}
	}
}
