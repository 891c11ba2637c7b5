# the rules of source addresses go
ip -n web rule del from 10.9.0.2/32 lookup 9800 priority 9800 protocol 98 || true
ip -n web -6 rule del from fd00:9::2/128 lookup 9800 priority 9800 protocol 98 || true
ip -n web rule del from 10.8.0.2/32 lookup 9801 priority 9801 protocol 98 || true

# the links go, each with its other end
ip link del dev bt11111111 || true
ip link del dev bt22222222 || true
ip link del dev bt22222222-out || true

# forget the connections that lead where nothing is any more; conntrack fails when it knows none
conntrack -D -f ipv4 -s 10.9.0.2 2>/dev/null || true
conntrack -D -f ipv4 -r 10.9.0.2 2>/dev/null || true
conntrack -D -f ipv6 -s fd00:9::2 2>/dev/null || true
conntrack -D -f ipv6 -r fd00:9::2 2>/dev/null || true
conntrack -D -f ipv4 -s 10.8.0.2 2>/dev/null || true
conntrack -D -f ipv4 -r 10.8.0.2 2>/dev/null || true

# the links go, each with its other end
ip link del dev bt-back || true
ip link del dev bt-front || true

# the host routes no more, as before Berth
sysctl -qw net/ipv4/ip_forward=0
sysctl -qw net/ipv6/conf/all/forwarding=0

# the firewall table goes, with all its elements
nft -f - <<'EOF'
table inet berth
delete table inet berth
EOF
