package main

import (
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/netns"
)

// Traffic goes over bare system calls on two threads, so that what is compared
// is the kernel's path and not a scheduler's. Each kind has its port.
const (
	portStream  = 81 // what comes is thrown away
	portEcho    = 82 // what comes is sent back
	portConnect = 83 // who comes is sent away
)

// serve answers on the three ports until the end of the run.
func serve(ns *netns.NS) {
	buf := make([]byte, 256<<10)
	for port, handle := range map[int]func(fd int){
		portStream: func(fd int) {
			for {
				if n, err := unix.Read(fd, buf); n <= 0 || err != nil {
					return
				}
			}
		},
		portEcho: func(fd int) {
			b := make([]byte, 1)
			for {
				if n, err := unix.Read(fd, b); n <= 0 || err != nil {
					return
				}
				if _, err := unix.Write(fd, b); err != nil {
					return
				}
			}
		},
		portConnect: func(int) {},
	} {
		var l int
		check(ns.Do(func() (err error) {
			l, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = unix.Bind(l, &unix.SockaddrInet4{Port: port})
			}
			return err
		}))
		check(unix.Listen(l, 128))
		go func() {
			runtime.LockOSThread()
			for {
				fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
				if err != nil {
					continue
				}
				nodelay(fd)
				handle(fd)
				unix.Close(fd)
			}
		}()
	}
}

func nodelay(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// dial connects from the thread's namespace.
func dial(to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", to, err)
	}
	return fd, nil
}

// reset closes a connection without anything left of it to wait for.
func reset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}

// A way leads from a namespace to a server.
type way struct {
	from *netns.NS
	to   netip.Addr
}

func (w way) port(p uint16) netip.AddrPort { return netip.AddrPortFrom(w.to, p) }

// throughput is what one stream moves, in Gb/s.
func (w way) throughput(d time.Duration) (rate float64) {
	check(w.from.Do(func() error {
		fd, err := dial(w.port(portStream))
		if err != nil {
			return err
		}
		defer reset(fd)
		buf := make([]byte, 256<<10)
		var sent int64
		start := time.Now()
		for time.Since(start) < d {
			n, err := unix.Write(fd, buf)
			if err != nil {
				return err
			}
			sent += int64(n)
		}
		rate = float64(sent) * 8 / time.Since(start).Seconds() / 1e9
		return nil
	}))
	return rate
}

// roundTrip is the median of request and response over one connection, in µs.
func (w way) roundTrip(d time.Duration) float64 {
	var s sample
	check(w.from.Do(func() error {
		fd, err := dial(w.port(portEcho))
		if err != nil {
			return err
		}
		defer reset(fd)
		nodelay(fd)
		b := make([]byte, 1)
		for begin := time.Now(); time.Since(begin) < d; {
			start := time.Now()
			if _, err := unix.Write(fd, b); err != nil {
				return err
			}
			if _, err := unix.Read(fd, b); err != nil {
				return err
			}
			s.add(float64(time.Since(start).Nanoseconds()) / 1e3)
		}
		return nil
	}))
	return s.median()
}

// newConnections is how many are opened in a second, one after the other. A
// connection is over when the server has closed it: a client that does not wait
// for that fills the server's queue, and what is measured is how long a lost
// SYN takes. It is then reset, so that no port waits at either end.
func (w way) newConnections(d time.Duration) (rate float64) {
	check(w.from.Do(func() error {
		n := 0
		b := make([]byte, 1)
		start := time.Now()
		for time.Since(start) < d {
			fd, err := dial(w.port(portConnect))
			if err != nil {
				return err
			}
			if _, err := unix.Read(fd, b); err != nil {
				return err
			}
			reset(fd)
			n++
		}
		rate = float64(n) / time.Since(start).Seconds()
		return nil
	}))
	return rate
}
