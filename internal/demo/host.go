package demo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/kernel"
	"berth/internal/netns"
	"berth/internal/nft"
	"berth/internal/plan"
)

// A hostKit is the private host, with a network outside.
type hostKit struct {
	ns, lan *netns.NS
	kernel  *kernel.Kernel
	nft     *nft.Conn
}

// The link between the private host and the network outside.
const (
	hostAddr = "192.0.2.1"
	lanAddr  = "192.0.2.2"
	lanName  = "outside"
)

// private makes a host of the process's own namespaces: mounts that nobody
// else sees, a loopback that is up, and one uplink.
func private() (*hostKit, error) {
	if err := unix.Mount("", "/", "none", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return nil, os.NewSyscallError("mount", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return nil, fmt.Errorf("mount /run: %w", err)
	}
	// Best effort: nothing of the demo reads /sys, but a curious shell might.
	_ = unix.Mount("sysfs", "/sys", "sysfs", 0, "")
	if err := os.Setenv("BERTH_ROOT", "/run/berth-root"); err != nil {
		return nil, err
	}
	h := &hostKit{}
	var err error
	if h.ns, err = netns.Current(); err != nil {
		return nil, err
	}
	if err := netns.Create(lanName); err != nil {
		return nil, err
	}
	if h.lan, err = netns.Open(netns.Path(lanName)); err != nil {
		return nil, err
	}
	h.kernel, err = kernel.Open(h.ns, kernel.Options{Lookup: func(plan.Place) (*netns.NS, error) { return netns.Open(netns.Path(lanName)) }})
	if err != nil {
		return nil, err
	}
	if h.nft, err = nft.Dial(h.ns); err != nil {
		return nil, err
	}
	return h, h.wire()
}

// wire joins the host and the outside.
func (h *hostKit) wire() error {
	up, far := plan.LinkKey{Name: "uplink"}, plan.LinkKey{Place: lanName, Name: "lan"}
	steps := []plan.Step{
		plan.UpLink{Key: plan.LinkKey{Name: "lo"}},
		plan.PutLink{Key: up, Link: plan.Link{Kind: plan.VethLink, MTU: 1500, Up: true, Peer: far}, Inside: plan.Link{Kind: plan.VethLink, MTU: 1500, Peer: up}},
		plan.PutAddr{Key: plan.AddrKey{Link: up, Prefix: netip.MustParsePrefix(hostAddr + "/24")}},
		plan.PutAddr{Key: plan.AddrKey{Link: far, Prefix: netip.MustParsePrefix(lanAddr + "/24")}},
		plan.UpLink{Key: far},
	}
	for _, s := range steps {
		if err := h.kernel.Apply(noTimeout, []plan.Step{s}); err != nil {
			return err
		}
	}
	return nil
}

// bridged reports whether frames that stay on a bridge pass the firewall.
func (h *hostKit) bridged() bool {
	v, err := h.kernel.Sysctl(plan.Host, "net/bridge/bridge-nf-call-iptables")
	return err == nil && v == "1"
}

// A place is where traffic comes from: the host, or a sandbox by name.
func open(name string) (*netns.NS, error) {
	if name == "" {
		return netns.Current()
	}
	return netns.Open(netns.Path(name))
}

// in does fn inside a place.
func in(name string, fn func() error) error {
	ns, err := open(name)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(fn)
}

// patience is how long an answer may take. Nothing is far away here.
const patience = 700 * time.Millisecond

// ping sends one ICMP echo (RFC 792) and reports whether it was answered.
func ping(from, to string) bool {
	var c net.Conn
	err := in(from, func() (err error) {
		c, err = net.Dial("ip4:icmp", to)
		return err
	})
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	echo := []byte{8, 0, 0, 0, 0x42, 0x42, 0, 1}
	binary.BigEndian.PutUint16(echo[2:], checksum(echo))
	if _, err := c.Write(echo); err != nil {
		return false
	}
	b := make([]byte, 256)
	for {
		// ReadFrom and not Read: it leaves the IP header out.
		n, _, err := c.(*net.IPConn).ReadFrom(b)
		if err != nil {
			return false
		}
		if n >= 8 && b[0] == 0 && b[4] == 0x42 && b[5] == 0x42 {
			return true
		}
	}
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// listen accepts connections in a place, as "nc -l" does, and answers each
// line with itself.
func listen(where, addr string) (io.Closer, error) {
	var l net.Listener
	err := in(where, func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l, nil
}

// talk connects and reports whether what it says comes back: both directions.
func talk(from, addr string) bool {
	c, err := dial(from, addr)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return false
	}
	b := make([]byte, 6)
	_, err = io.ReadFull(c, b)
	return err == nil && string(b) == "hello\n"
}

func dial(from, addr string) (c net.Conn, err error) {
	err = in(from, func() error {
		c, err = net.DialTimeout("tcp4", addr, patience)
		return err
	})
	return c, err
}

// page is what the demo's web server says.
const page = "Welcome to a web server in a network namespace.\n"

// web serves the page in a place until it is closed.
func web(where, addr string) (io.Closer, error) {
	var l net.Listener
	err := in(where, func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, page) }), ReadHeaderTimeout: patience}
	go func() { _ = s.Serve(l) }()
	return s, nil
}

// curl fetches a page from a place.
func curl(from, addr string) (string, error) {
	c, err := dial(from, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", addr); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return "", err
	}
	_, body, ok := strings.Cut(string(b), "\r\n\r\n")
	if !ok {
		return "", errors.New("no answer")
	}
	return body, nil
}

// serves reports whether the page is to be had.
func serves(from, addr string) bool {
	body, err := curl(from, addr)
	return err == nil && body == page
}
