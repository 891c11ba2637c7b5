// Package netns opens, makes and enters network namespaces. It is the only
// place that ties a goroutine to a thread.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"

	"berth/internal/crash"

	"golang.org/x/sys/unix"
)

// An NS is an open network namespace. While it is open the namespace lives,
// whatever becomes of its name and its processes.
type NS struct {
	file   *os.File // kept referenced: its finalizer would end the namespace
	cookie uint64
	users  atomic.Int32 // that will Close it, beside the first
}

// Current opens the namespace of the calling thread.
func Current() (*NS, error) { return Open("/proc/thread-self/ns/net") }

// Open opens the namespace a path leads to: a name in /run/netns, a
// /proc/PID/ns/net or any bind mount of one. It returns an error that matches
// [os.ErrNotExist] where there is none.
func Open(path string) (*NS, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	// NS_GET_NSTYPE (ioctl_ns(2)) refuses everything that is no namespace, as
	// the plain file that a reboot leaves of a name in /run/netns.
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("%s is not a network namespace: %w", path, os.ErrNotExist)
	}
	n := &NS{file: f}
	err = n.Do(func() error {
		n.cookie, err = cookie()
		return err
	})
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("enter %s: %w", path, err)
	}
	return n, nil
}

// cookie reads the number of the thread's namespace: unique until the next
// boot, where an inode number is used again at once (SO_NETNS_COOKIE,
// Linux 5.14).
func cookie() (uint64, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	return unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

// BootID is the number of this boot, within which a cookie is unique.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// Share returns n for one more user, who closes it too. It saves opening the
// namespace again.
func (n *NS) Share() *NS {
	n.users.Add(1)
	return n
}

// Close lets go of the namespace, with its last user.
func (n *NS) Close() error {
	if n.users.Add(-1) >= 0 {
		return nil
	}
	return n.file.Close()
}

// FD is the open file of the namespace, valid until Close.
func (n *NS) FD() int { return int(n.file.Fd()) }

// File is the open file of the namespace; Close closes it.
func (n *NS) File() *os.File { return n.file }

// Cookie is the namespace's identity within one boot.
func (n *NS) Cookie() uint64 { return n.cookie }

// Do runs fn on a thread inside the namespace. What fn opens (sockets, files
// below /proc/sys/net) belongs to the namespace for good; a goroutine that fn
// starts does not run in it.
func (n *NS) Do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return fn()
	})
}

// onThread runs fn, which may change the thread's namespace, on a thread of
// its own and returns the thread to where it was. A thread that cannot return
// stays locked, so the runtime ends it with its goroutine.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- os.NewSyscallError("open", err)
			return
		}
		defer unix.Close(home)
		err = fn()
		if back := unix.Setns(home, unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Dir is where named namespaces are pinned, as ip-netns(8) does it.
const Dir = "/run/netns"

// Path is where the namespace of a name is pinned.
func Path(name string) string { return Dir + "/" + name }

// Create makes a namespace and pins it under name, so that "ip netns" knows
// it. It returns an error that matches [os.ErrExist] if the name is taken.
func Create(name string) error {
	if err := shareDir(); err != nil {
		return err
	}
	f, err := os.OpenFile(Path(name), os.O_RDONLY|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f.Close()
	crash.Point("netns.not yet pinned")
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		return os.NewSyscallError("mount", unix.Mount("/proc/thread-self/ns/net", Path(name), "none", unix.MS_BIND, ""))
	})
	if err != nil {
		return errors.Join(err, os.Remove(Path(name)))
	}
	return nil
}

// Remove takes the pin away; the namespace ends with its last process. A name
// that is not there is no error.
func Remove(name string) error {
	err := unix.Unmount(Path(name), unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return os.NewSyscallError("umount", err)
	}
	crash.Point("netns.no longer pinned")
	if err := os.Remove(Path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// shareDir makes Dir a shared mount point, as ip-netns(8) does, so that a pin
// made in one mount namespace goes away in all of them.
func shareDir() error {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not yet a mount point
		if err := unix.Mount(Dir, Dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
		crash.Point("netns.not yet shared")
		err = unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	return os.NewSyscallError("mount", err)
}
