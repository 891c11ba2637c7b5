package nettest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// SCTP is spoken over raw sockets, since many kernels have conntrack and NAT
// for it and no sockets: one INIT, answered by an INIT ACK that carries the
// text as its cookie (RFC 9260 §3.3.2, §3.3.3). Conntrack takes this for the
// opening of an association.
const (
	chunkInit    = 1
	chunkInitAck = 2
	paramCookie  = 7
)

func listenSCTP(addr netip.Addr) (net.PacketConn, error) {
	return net.ListenPacket("ip"+family(addr)+":132", addr.String())
}

func answerSCTP(c net.PacketConn, port uint16, text string) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		p, ok := parseSCTP(buf[:n])
		if ok && p.kind == chunkInit && p.to == port {
			ack := packetSCTP{from: port, to: p.from, tag: p.initTag, kind: chunkInitAck, initTag: p.initTag, cookie: []byte(reply(text, from))}
			c.WriteTo(ack.bytes(), from) // best effort: it is a datagram
		}
	}
}

func dialSCTP(place Place, addr netip.AddrPort, timeout time.Duration) (string, error) {
	var c net.PacketConn
	err := place.Do(func() (err error) {
		c, err = net.ListenPacket("ip"+family(addr.Addr())+":132", "")
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	init := packetSCTP{
		from: uint16(32768 + rand.IntN(28000)), to: addr.Port(), kind: chunkInit, initTag: rand.Uint32() | 1,
	}
	if _, err := c.WriteTo(init.bytes(), &net.IPAddr{IP: addr.Addr().AsSlice()}); err != nil {
		return "", err
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return "", fmt.Errorf("dial sctp %s: %w", addr, err)
		}
		p, ok := parseSCTP(buf[:n])
		if ok && p.kind == chunkInitAck && p.to == init.from && p.from == init.to && p.tag == init.initTag {
			return string(p.cookie), nil
		}
	}
}

// A packetSCTP is a packet with an INIT or an INIT ACK.
type packetSCTP struct {
	from, to     uint16
	tag, initTag uint32
	kind         byte
	cookie       []byte
}

func (p packetSCTP) bytes() []byte {
	chunk := []byte{p.kind, 0, 0, 0}
	chunk = binary.BigEndian.AppendUint32(chunk, p.initTag)
	chunk = binary.BigEndian.AppendUint32(chunk, 1<<16) // window
	chunk = append(chunk, 0, 1, 0, 1, 0, 0, 0, 1)       // one stream each way, first TSN 1
	if p.cookie != nil {
		chunk = binary.BigEndian.AppendUint16(chunk, paramCookie)
		chunk = binary.BigEndian.AppendUint16(chunk, uint16(4+len(p.cookie)))
		chunk = append(chunk, p.cookie...)
	}
	binary.BigEndian.PutUint16(chunk[2:], uint16(len(chunk)))
	for len(chunk)%4 != 0 {
		chunk = append(chunk, 0)
	}
	b := binary.BigEndian.AppendUint16(nil, p.from)
	b = binary.BigEndian.AppendUint16(b, p.to)
	b = binary.BigEndian.AppendUint32(b, p.tag)
	b = append(b, 0, 0, 0, 0)
	b = append(b, chunk...)
	// Conntrack drops what has a wrong checksum: CRC32c, low byte first.
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func parseSCTP(b []byte) (p packetSCTP, ok bool) {
	if len(b) < 32 {
		return p, false
	}
	p.from, p.to = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	p.tag, p.kind, p.initTag = binary.BigEndian.Uint32(b[4:]), b[12], binary.BigEndian.Uint32(b[16:])
	if rest := b[32:]; len(rest) >= 4 && binary.BigEndian.Uint16(rest) == paramCookie {
		n := int(binary.BigEndian.Uint16(rest[2:]))
		if n < 4 || n > len(rest) {
			return p, false
		}
		p.cookie = bytes.Clone(rest[4:n])
	}
	return p, true
}
