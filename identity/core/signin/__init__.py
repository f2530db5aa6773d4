"""Signing in: from a password, a code or nothing at all to a session.

A login walks these states; each arrow is one conditional update, so that of any number of parallel requests one takes it:

    (nobody) --password right--> challenge --second factor right--> session      by_password, challenges, factors
    (nobody) --address named---> waiting session --mailed code----> session      by_code
    (nobody) --sign up---------> waiting user and session --code--> session      sign_up
    (nobody) --forgot----------> reset code --code, new password--> (nobody)     new_password
    session  --password again--> session, all others ended                       new_password

    POST /user/token             by_password, the factor beside the password
    POST /auth/login             by_password.start; POST /auth/mfa/challenge takes its second step
    POST /query login, otp       the same two steps, in GraphQL
    POST /session                by_code; PUT /session/verification takes its second step
    POST /user                   sign_up
"""
