package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink/nl"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"berth"
)

// A Listener is a bound socket of the host.
type Listener struct {
	Protocol berth.Protocol
	Addr     netip.AddrPort // 0.0.0.0 and :: are any address
	V6Only   bool           // a listener at :: that takes no IPv4
	Inode    uint32
	UID      uint32
}

// States of a socket (tcp_states.h) that take a port from new clients.
const (
	stateListen = 10
	stateClose  = 7 // an unconnected UDP socket
)

// inetDiagSKV6Only is INET_DIAG_SKV6ONLY (inet_diag.h).
const inetDiagSKV6Only = 11

// Listeners returns the host's sockets that wait for clients, of some protocols
// or of all: TCP and SCTP ones that listen, UDP ones that are bound and not
// connected.
func (k *Kernel) Listeners(protocols ...berth.Protocol) ([]Listener, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.diag == nil {
		err := k.host.ns.Do(func() (err error) {
			k.diag, err = nl.GetNetlinkSocketAt(vnetns.None(), vnetns.None(), unix.NETLINK_INET_DIAG)
			return err
		})
		if err != nil {
			return nil, err
		}
		_ = k.diag.SetReceiveBufferSize(receiveBuffer, true) // best effort
	}
	if len(protocols) == 0 {
		protocols = []berth.Protocol{berth.TCP, berth.UDP, berth.SCTP}
	}
	var out []Listener
	sockets := map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: k.diag}}
	for _, protocol := range protocols {
		q := queries[protocol]
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			var got []Listener
			err := retryDump(func() (err error) {
				got, err = listeners(sockets, protocol, q.number, family, q.state)
				return err
			})
			// A protocol whose module is not loaded has no sockets.
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
				return nil, fmt.Errorf("list %s sockets: %w", protocol, err)
			}
			out = append(out, got...)
		}
	}
	return out, nil
}

// queries are the sockets of a protocol that wait for clients.
var queries = map[berth.Protocol]struct {
	number uint8
	state  uint
}{
	berth.TCP: {unix.IPPROTO_TCP, stateListen}, berth.UDP: {unix.IPPROTO_UDP, stateClose}, berth.SCTP: {unix.IPPROTO_SCTP, stateListen},
}

// diagRequest is struct inet_diag_req_v2 with an empty socket id.
type diagRequest [56]byte

func (diagRequest) Len() int            { return 56 }
func (r diagRequest) Serialize() []byte { return r[:] }

func listeners(sockets map[int]*nl.SocketHandle, protocol berth.Protocol, number, family uint8, state uint) ([]Listener, error) {
	req := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.Sockets = sockets
	var r diagRequest
	r[0], r[1] = family, number
	// idiag_ext knows eight attributes; the kernel adds SKV6ONLY unasked.
	binary.NativeEndian.PutUint32(r[4:], 1<<state)
	req.AddData(r)
	msgs, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	if err != nil {
		return nil, err
	}
	var out []Listener
	for _, m := range msgs {
		l, ok := parseDiag(m)
		if !ok {
			continue
		}
		l.Protocol = protocol
		out = append(out, l)
	}
	return out, nil
}

// parseDiag reads struct inet_diag_msg: family, state, then the socket id with
// its ports, source at 8 and destination at 24, and uid and inode at the end.
func parseDiag(m []byte) (l Listener, ok bool) {
	const size = 72
	if len(m) < size {
		return l, false
	}
	a, _ := netip.AddrFromSlice(m[8:12])
	if m[0] == unix.AF_INET6 {
		a, _ = netip.AddrFromSlice(m[8:24])
	}
	l.Addr = netip.AddrPortFrom(a, binary.BigEndian.Uint16(m[4:]))
	l.UID, l.Inode = binary.NativeEndian.Uint32(m[64:]), binary.NativeEndian.Uint32(m[68:])
	attrs, err := nl.ParseRouteAttr(m[size:])
	if err != nil {
		return l, false
	}
	for _, at := range attrs {
		if at.Attr.Type == inetDiagSKV6Only && len(at.Value) > 0 {
			l.V6Only = at.Value[0] == 1
		}
	}
	return l, l.Addr.Port() != 0
}

// Owner names the process that holds a socket: "nginx (pid 123)". It looks
// through all of /proc, so only when an error needs it; empty if none is found.
func Owner(inode uint32) string {
	link := fmt.Sprintf("socket:[%d]", inode)
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || to != link {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			return "pid " + pid
		}
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid)
	}
	return ""
}
