#!/usr/bin/perl
# Makes what Node cannot: listening sockets nobody accepts on yet, and fds taken over from an orphaned daemon. Then becomes the supervisor.
#
#   supervisor-shim.pl [--listen unix:PATH|tcp:HOST:PORT]... [--adopt PID FD NAME]... -- COMMAND [ARG]...
#
# NAME is `fuse` or the address of a listening socket. The command finds SKIMMER_KEPT_FDS in its environment, one `FD=NAME` a line.
# Needs perl-base alone. Exit code 78 (EX_CONFIG) when a socket cannot be made.
use strict;
use warnings;
use Fcntl qw(F_GETFD F_SETFD FD_CLOEXEC);
use Socket qw(:DEFAULT getaddrinfo SOCK_STREAM AI_PASSIVE);

# The same numbers on every architecture: they were added after the tables were unified.
my ($PIDFD_OPEN, $PIDFD_GETFD) = (434, 438);
my (@kept, @open);

sub give_up { print STDERR "skimmer: $_[0]\n"; exit 78 }

sub keep {
    my ($handle, $name) = @_;
    my $flags = fcntl($handle, F_GETFD, 0);
    fcntl($handle, F_SETFD, $flags & ~FD_CLOEXEC) or give_up("$name: fcntl: $!");
    push @open, $handle;
    push @kept, fileno($handle) . "=$name";
}

sub listen_unix {
    my ($path, $name) = @_;
    if (-S $path) {
        socket(my $probe, PF_UNIX, SOCK_STREAM, 0) or give_up("socket: $!");
        give_up("$path: another process listens there; stop it first") if connect($probe, pack_sockaddr_un($path));
        unlink $path or give_up("$path: cannot remove the old socket: $!");
    }
    socket(my $socket, PF_UNIX, SOCK_STREAM, 0) or give_up("socket: $!");
    my $mask = umask 0117;
    bind($socket, pack_sockaddr_un($path)) or give_up("$path: cannot bind: $!");
    umask $mask;
    listen($socket, SOMAXCONN) or give_up("$path: cannot listen: $!");
    keep($socket, $name);
}

sub listen_tcp {
    my ($host, $port, $name) = @_;
    my ($error, $found) = getaddrinfo($host, $port, { socktype => SOCK_STREAM, flags => AI_PASSIVE });
    give_up("$host: $error") if $error;
    socket(my $socket, $found->{family}, SOCK_STREAM, 0) or give_up("socket: $!");
    setsockopt($socket, SOL_SOCKET, SO_REUSEADDR, 1);
    bind($socket, $found->{addr}) or give_up("$host:$port: cannot bind: $!");
    listen($socket, SOMAXCONN) or give_up("$host:$port: cannot listen: $!");
    keep($socket, $name);
}

sub adopt {
    my ($pid, $fd, $name) = @_;
    my $pidfd = syscall($PIDFD_OPEN, $pid + 0, 0);
    give_up("process $pid: pidfd_open: $!") if $pidfd < 0;
    my $taken = syscall($PIDFD_GETFD, $pidfd, $fd + 0, 0);
    give_up("process $pid: cannot take over fd $fd ($name): $!") if $taken < 0;
    open(my $handle, '+<&=', $taken) or give_up("fd $taken: $!");
    keep($handle, $name);
}

while (@ARGV) {
    my $word = shift @ARGV;
    last if $word eq '--';
    if ($word eq '--listen') {
        my $name = shift @ARGV;
        if    ($name =~ m{^unix:(/.+)$})               { listen_unix($1, $name) }
        elsif ($name =~ m{^tcp:\[?([^\]]*)\]?:(\d+)$}) { listen_tcp($1, $2, $name) }
        else                                           { give_up("$name: write unix:/PATH or tcp:HOST:PORT") }
    }
    elsif ($word eq '--adopt') { adopt(splice @ARGV, 0, 3) }
    else                       { give_up("unknown word $word") }
}
give_up('no command') unless @ARGV;
$ENV{SKIMMER_KEPT_FDS} = join "\n", @kept;
exec { $ARGV[0] } @ARGV or give_up("$ARGV[0]: $!");
