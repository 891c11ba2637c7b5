package engine_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/nettest"
)

// A port of attack: an interface of a namespace from which any frame can be
// sent.
type gun struct {
	t     *testing.T
	place nettest.Place
	dev   string
	fd    int
	index int
	own   net.HardwareAddr
}

func newGun(t *testing.T, place nettest.Place, dev string) *gun {
	t.Helper()
	g := &gun{t: t, place: place, dev: dev}
	err := place.Do(func() error {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		g.index, g.own = i.Index, i.HardwareAddr
		g.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatalf("aim from %s: %v", dev, err)
	}
	t.Cleanup(func() { unix.Close(g.fd) })
	return g
}

// fire sends IP packets to a MAC address.
func (g *gun) fire(to net.HardwareAddr, packets ...[]byte) {
	g.t.Helper()
	for _, p := range packets {
		kind := []byte{0x08, 0x00}
		if p[0]>>4 == 6 {
			kind = []byte{0x86, 0xdd}
		}
		frame := bytes.Join([][]byte{to, g.own, kind, p}, nil)
		if err := unix.Sendto(g.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: g.index, Halen: 6, Addr: [8]byte(append(append([]byte{}, to...), 0, 0))}); err != nil {
			g.t.Fatalf("send from %s: %v", g.dev, err)
		}
	}
}

// An ear hears every packet that a namespace is given.
type ear struct {
	t  *testing.T
	fd int
}

func newEar(t *testing.T, place nettest.Place) *ear {
	t.Helper()
	e := &ear{t: t}
	err := place.Do(func() (err error) {
		e.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})))
		return err
	})
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	t.Cleanup(func() { unix.Close(e.fd) })
	return e
}

// hears reports whether a packet that holds mark came in before the deadline,
// or before a packet that holds fence: what was sent before the fence has had
// its turn when the fence comes.
func (e *ear) hears(mark, fence []byte, patience time.Duration) bool {
	e.t.Helper()
	deadline := time.Now().Add(patience)
	buf := make([]byte, 65536)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		tv := unix.NsecToTimeval(left.Nanoseconds())
		if err := unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			e.t.Fatal(err)
		}
		n, from, err := unix.Recvfrom(e.fd, buf, 0)
		if err != nil {
			return false
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if bytes.Contains(buf[:n], mark) {
			return true
		}
		if fence != nil && bytes.Contains(buf[:n], fence) {
			return false
		}
	}
}

// udp builds an IP packet with a UDP datagram.
func udp(src, dst netip.AddrPort, payload []byte) []byte {
	u := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(u[0:], src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(payload)))
	u = append(u, payload...)
	binary.BigEndian.PutUint16(u[6:], transportSum(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, u))
	return ip(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, u)
}

func ip(src, dst netip.Addr, proto byte, payload []byte) []byte {
	if src.Is6() {
		h := make([]byte, 40)
		h[0], h[6], h[7] = 6<<4, proto, 64
		binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
		copy(h[8:], src.AsSlice())
		copy(h[24:], dst.AsSlice())
		return append(h, payload...)
	}
	h := make([]byte, 20)
	h[0], h[8], h[9] = 4<<4|5, 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(h[4:], 0x4242)
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], sum(h))
	return append(h, payload...)
}

// fragments cuts an IPv4 packet into pieces of eight payload bytes, so that no
// but the first has a whole transport header.
func fragments(p []byte) [][]byte {
	var out [][]byte
	payload := p[20:]
	for off := 0; off < len(payload); off += 8 {
		end := min(off+8, len(payload))
		h := append([]byte{}, p[:20]...)
		binary.BigEndian.PutUint16(h[2:], uint16(20+end-off))
		flags := uint16(off / 8)
		if end < len(payload) {
			flags |= 0x2000
		}
		binary.BigEndian.PutUint16(h[6:], flags)
		h[10], h[11] = 0, 0
		binary.BigEndian.PutUint16(h[10:], sum(h))
		out = append(out, append(h, payload[off:end]...))
	}
	return out
}

// advertisement builds a router advertisement that offers its sender as the
// default router and a prefix to take an address from (RFC 4861, 4.2).
func advertisement(src netip.Addr, own net.HardwareAddr, prefix netip.Addr) []byte {
	dst := netip.MustParseAddr("ff02::1")
	b := []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}
	b = append(b, 1, 1)
	b = append(b, own...)
	b = append(b, 3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0)
	b = append(b, prefix.AsSlice()...)
	binary.BigEndian.PutUint16(b[2:], transportSum(src, dst, unix.IPPROTO_ICMPV6, b))
	p := ip(src, dst, unix.IPPROTO_ICMPV6, b)
	p[7] = 255
	return p
}

// discovery builds a neighbour advertisement (RFC 4861, 4.4) of an address that
// is no neighbour's, with something to recognise it by.
func discovery(src, dst netip.Addr, mark []byte) []byte {
	b := append([]byte{136, 0, 0, 0, 0, 0, 0, 0}, src.AsSlice()...)
	b = append(b, mark...)
	binary.BigEndian.PutUint16(b[2:], transportSum(src, dst, unix.IPPROTO_ICMPV6, b))
	return ip(src, dst, unix.IPPROTO_ICMPV6, b)
}

func transportSum(src, dst netip.Addr, proto byte, b []byte) uint16 {
	pseudo := append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...)
	if src.Is6() {
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
		pseudo = append(pseudo, 0, 0, 0, proto)
	} else {
		pseudo = append(pseudo, 0, proto)
		pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(b)))
	}
	s := sum(append(pseudo, b...))
	if s == 0 {
		s = 0xffff
	}
	return s
}

func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		if i+1 < len(b) {
			s += uint32(b[i])<<8 | uint32(b[i+1])
		} else {
			s += uint32(b[i]) << 8
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
